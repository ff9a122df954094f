/*
 * The account of a tenant in tier `shim`: what its processes hold, and how much of the GPU's time it has left. A file
 * of the daemon's, whose descriptor the shim gets over the join socket and maps: a reservation costs no system call.
 * What a tenant writes here against its own limits the daemon finds out from the driver (node/shim_tier.py).
 *
 * A row is one process'; the daemon gives and takes rows, a process writes its own and reads all.
 */
#ifndef VGPU_ACCOUNT_H
#define VGPU_ACCOUNT_H

#include <stdint.h>

#define VGPU_ACCOUNT_MAGIC 0x41504756u /* "VGPA" */
#define VGPU_ACCOUNT_VERSION 1u
#define VGPU_ACCOUNT_ROWS 512u
#define VGPU_ACCOUNT_FILE "account"

/* FIELD(type, name): bytes, and nanoseconds of CLOCK_MONOTONIC. */
#define VGPU_ACCOUNT_ROW_FIELDS(FIELD)                                      \
    FIELD(uint32_t, pid) /* as the node sees it; 0: the row is free */      \
    FIELD(uint32_t, padding)                                                \
    FIELD(uint64_t, device)  /* memory of the GPU, by the driver's calls */ \
    FIELD(uint64_t, managed) /* memory that the driver may move */          \
    FIELD(uint64_t, busy_at) /* when work of it was last on the GPU; 0: never */

#define VGPU_ACCOUNT_FIELDS(FIELD)                                                                         \
    FIELD(uint32_t, magic)                                                                                 \
    FIELD(uint32_t, version)                                                                               \
    FIELD(uint32_t, rows_end) /* rows ever used: readers stop here */                                      \
    FIELD(uint32_t, padding)                                                                               \
    FIELD(int64_t, budget)         /* time on the GPU that the tenant has saved up; below 0: used ahead */ \
    FIELD(uint64_t, covered_until) /* time on the GPU is charged for as far as this */                     \
    FIELD(uint64_t, budget_at)     /* when it was last brought up to date */

struct vgpu_account_row {
#define FIELD(type, name) type name;
    VGPU_ACCOUNT_ROW_FIELDS(FIELD)
#undef FIELD
};

struct vgpu_account {
#define FIELD(type, name) type name;
    VGPU_ACCOUNT_FIELDS(FIELD)
#undef FIELD
    struct vgpu_account_row rows[VGPU_ACCOUNT_ROWS];
    uint64_t used_ns; /* what was ever charged; here, so that programs with an older shim find the rest where it was */
};

#endif
