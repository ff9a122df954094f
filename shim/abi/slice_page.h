/*
 * The slice page: what one tenant may use and uses now. One writer (vgpu-guard; the daemon of busy_percent and
 * sampled_at_ns, each a single store), many readers (libvgpu.so in the tenant, vgpud). The file is mounted read-only
 * into the tenant.
 *
 * The layout is written once, here, as field lists; vgpu-guard --layout prints it as JSON for Python.
 * Readers take a consistent copy with `sequence`: odd while the guard writes, changed when it wrote.
 */
#ifndef VGPU_SLICE_PAGE_H
#define VGPU_SLICE_PAGE_H

#include <stdint.h>

#define VGPU_PAGE_MAGIC 0x55504756u /* "VGPU" */
#define VGPU_PAGE_VERSION 3u
#define VGPU_PAGE_PROCESSES 512u
#define VGPU_UUID_LENGTH 48

enum vgpu_policy { VGPU_POLICY_HARD = 0, VGPU_POLICY_BURST = 1 };
enum vgpu_tier { VGPU_TIER_NONE = 0, VGPU_TIER_GUARD = 1, VGPU_TIER_SHIM = 2 };

/* FIELD(type, name): one entry of the page or of a process row; bytes and nanoseconds throughout. */
#define VGPU_PROCESS_FIELDS(FIELD)                                                        \
    FIELD(uint32_t, pid)        /* as the node sees it; 0: the row is free */             \
    FIELD(uint32_t, pid_inside) /* as the innermost pid namespace it is in sees it */     \
    FIELD(uint32_t, channels)                                                             \
    FIELD(uint32_t, busy_percent) /* of the whole GPU's compute; the daemon samples it */ \
    FIELD(uint64_t, memory)                                                               \
    FIELD(uint64_t, active_ns) /* CLOCK_REALTIME; when it was last seen to hand in work; 0: never */

#define VGPU_PAGE_FIELDS(FIELD)                                                                   \
    FIELD(uint32_t, magic)                                                                        \
    FIELD(uint32_t, version)                                                                      \
    FIELD(uint32_t, sequence)                                                                     \
    FIELD(uint32_t, tier)                                                                         \
    FIELD(uint32_t, policy)                                                                       \
    FIELD(uint32_t, core_millipercent) /* 25000 is a quarter of the GPU */                        \
    FIELD(uint32_t, core_now)          /* tier shim: what may be used now, for `burst` more */    \
    FIELD(uint32_t, padding)                                                                      \
    FIELD(uint64_t, memory_quota)                                                                 \
    FIELD(uint64_t, memory_limit) /* device and managed memory together; the quota or more */     \
    FIELD(uint64_t, memory_used)                                                                  \
    FIELD(uint64_t, memory_managed) /* what of it is managed: it may be in host memory */         \
    FIELD(uint64_t, memory_free)    /* so much device memory may still be had */                  \
    FIELD(uint64_t, memory_peak)                                                                  \
    FIELD(uint64_t, on_ns) /* time that the tenant's channels were on the GPU */                  \
    FIELD(uint32_t, channels_on)                                                                  \
    FIELD(uint32_t, process_rows) /* rows ever used: readers stop here */                         \
    FIELD(uint64_t, refusals)                                                                     \
    FIELD(uint64_t, refused_bytes) /* the last refusal: what was asked, what was free, by whom */ \
    FIELD(uint64_t, refused_free)                                                                 \
    FIELD(uint64_t, refused_at_ns) /* CLOCK_REALTIME */                                           \
    FIELD(uint32_t, refused_pid)                                                                  \
    FIELD(uint32_t, guard_pid)                                                                    \
    FIELD(uint64_t, sampled_at_ns) /* CLOCK_REALTIME; when the daemon sampled busy_percent */

struct vgpu_process_row {
#define FIELD(type, name) type name;
    VGPU_PROCESS_FIELDS(FIELD)
#undef FIELD
};

struct vgpu_slice_page {
#define FIELD(type, name) type name;
    VGPU_PAGE_FIELDS(FIELD)
#undef FIELD
    char gpu_uuid[VGPU_UUID_LENGTH];
    struct vgpu_process_row processes[VGPU_PAGE_PROCESSES];
};

/* Names that launcher, shim and daemon agree on; all inside the tenant's directory. */
#define VGPU_ENV_DIR "VGPU_SLICE_DIR"
#define VGPU_ENV_TIER "VGPU_TIER"
#define VGPU_PAGE_FILE "slice"
#define VGPU_JOIN_SOCKET "join.sock"

#endif
