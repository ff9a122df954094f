/* Who is on the GPU when. One thread a GPU switches tenants' channels; docs/scheduling.md explains the policy. */
#ifndef VGPU_GUARD_SCHED_H
#define VGPU_GUARD_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#define SCHED_PERIOD_NS 100000000ull
#define SCHED_MAX_SHARES 256

struct share {
    int slot;
    uint32_t millipercent, policy;
};
/* A tenant's turn in each period. */
struct turn {
    int slot;
    uint64_t ns;
};

/*
 * Divide a period among the tenants that have channels on one GPU. Pure.
 * hard: its percent, less when all together ask for over 100. burst: that, and an equal part of what is left over.
 * Returns the number of turns; what they don't fill is nobody's.
 */
int sched_plan(const struct share *shares, int count, uint64_t period_ns, struct turn *turns);

void sched_start(void);
void sched_wake(void); /* channels, quotas or tenants changed */
void sched_stop(void); /* put every channel back on and end the threads */

#endif
