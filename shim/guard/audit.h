/* The driver's own account of a tenant beside the ledger's: whatever way memory was had, it shows there. */
#ifndef VGPU_GUARD_AUDIT_H
#define VGPU_GUARD_AUDIT_H

#include <stdbool.h>
#include <stdint.h>

struct audit {
    uint64_t done_ns, excess; /* when last, and what it found */
};

/*
 * Bytes that the tenant has and the ledger does not know, found twice in a row; 0: none, or it is not time yet.
 * `unsure`: look often.
 */
uint64_t audit_tenant(struct audit *audit, int slot, bool unsure, uint64_t now);

#endif
