/* What to do with a tenant's ioctl. Decides only: nothing here touches the tenant or the driver. */
#ifndef VGPU_GUARD_JUDGE_H
#define VGPU_GUARD_JUDGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "rm_abi.h"

#define CALL_ARGS_MAX 256

/* One call, as the guard copied it: the tenant can't change this copy. */
struct call {
    int slot;
    pid_t pid;
    uint32_t nr, size;
    uint64_t address; /* of the struct in the tenant */
    union {
        unsigned char bytes[CALL_ARGS_MAX];
        struct nvos00 free;
        struct nvos21 alloc_short;
        struct nvos64 alloc;
        struct nvos54 control;
        struct nvos55 dup;
    } args;
    struct nvos64 alloc; /* NV_ESC_RM_ALLOC in either form */
    uint32_t alloc_status_offset;
    struct nv_memory_allocation_params memory; /* class 0x40 */
};

enum verdict_kind {
    VERDICT_CONTINUE, /* the kernel does it */
    VERDICT_STATUS,   /* answered with the driver's own error word */
    VERDICT_ERRNO,    /* answered with errno */
    VERDICT_ALLOC,    /* the guard performs it and accounts */
    VERDICT_FREE,
};

struct verdict {
    enum verdict_kind kind;
    uint32_t status, status_offset;
    int error;
    bool schedules; /* the tenant asks for channels to run: the scheduler wants to know */
};

/* How many bytes of the struct to copy for this escape; 0: the guard does not look at it. */
uint32_t judge_wants(uint32_t nr, uint32_t size);
/* Under ledger_lock(). Registers clients, channel groups and channels that the kernel is about to make. */
struct verdict judge(struct call *call);

#endif
