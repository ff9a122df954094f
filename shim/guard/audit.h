/* The driver's own account of a tenant beside the ledger's: whatever way memory was had, it shows there. */
#ifndef VGPU_GUARD_AUDIT_H
#define VGPU_GUARD_AUDIT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct audit {
    uint64_t done_ns;
    int found; /* how often in a row */
};

/*
 * Bytes that the tenant has and the ledger does not know, found again and again for a second; 0: none, or it is not
 * time yet. `unsure`: look often. `members`: processes that are known to be the tenant's, for numbers are reused.
 */
uint64_t audit_tenant(struct audit *audit, int slot, bool unsure, const pid_t *members, int count, uint64_t now);

#endif
