/*
 * The time on the GPU that a tenant has left, in the account that its processes share: it fills at the tenant's percent
 * of the clock, and what runs is taken off. docs/scheduling.md.
 */
#ifndef VGPU_HOOK_BUDGET_H
#define VGPU_HOOK_BUDGET_H

#include <stdint.h>

struct vgpu_account;

/* Work on the GPU, as far as it was charged for. Nanoseconds of CLOCK_MONOTONIC; started_ns 0: there is none. */
struct span {
    uint64_t started_ns, charged_from_ns, charged_ns;
};

/* It went on until then at least. What another process, or another stream, has paid for is paid. */
void budget_charge(struct vgpu_account *account, struct span *span, uint64_t until);
/* It ended then, as is known now: after it was last charged for, or before. */
void budget_settle(struct vgpu_account *account, struct span *span, uint64_t ended_ns, uint64_t now);
/* share: thousandths of a percent of the clock. */
void budget_refill(struct vgpu_account *account, uint32_t share, uint64_t now);
int64_t budget_left(struct vgpu_account *account); /* nanoseconds; below 0: used ahead */

#endif
