/* What to do with a tenant's ioctl. Decides only: nothing here touches the tenant or the driver. */
#ifndef VGPU_GUARD_JUDGE_H
#define VGPU_GUARD_JUDGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "backend.h"
#include "rm_abi.h"

#define CALL_ARGS_MAX 256

/* One call, as the guard copied it: the tenant can't change this copy. */
struct call {
    int slot;
    pid_t pid, tid;
    int descriptor; /* as the tenant calls it */
    enum file_kind file;
    uint32_t nr, size;
    bool wrapped;     /* it came in an NV_ESC_IOCTL_XFER_CMD */
    uint64_t address; /* of the struct in the tenant */
    union {
        unsigned char bytes[CALL_ARGS_MAX];
        struct nvos00 free;
        struct nvos05 object;
        struct nvos21 alloc_short;
        struct nvos64 alloc;
        struct nvos54 control;
        struct nvos55 dup;
        struct nvos32 heap;
    } args;
    struct nvos64 alloc; /* NV_ESC_RM_ALLOC in either form */
    uint32_t alloc_status_offset;
};

/*
 * Everything that counts is performed by the guard from its own copy: a call that the kernel were let go on with
 * could be rewritten by another thread after it was judged. CONTINUE is left for what the file itself keeps harmless.
 */
enum verdict_kind {
    VERDICT_CONTINUE, /* the kernel does it: a client's making, by a door that gives no memory */
    VERDICT_STATUS,   /* answered with the driver's own error word */
    VERDICT_ERRNO,    /* answered with errno */
    VERDICT_ROOT,     /* a client is made, by the door that gives memory too */
    VERDICT_ALLOC,
    VERDICT_FREE,
    VERDICT_CONTROL,
    VERDICT_DUP,
    VERDICT_HEAP_ALLOC,
    VERDICT_HEAP_FREE,
    VERDICT_HEAP_ASK,
};

struct verdict {
    enum verdict_kind kind;
    uint32_t status, status_offset;
    int error;
};

/* How many bytes of the struct to copy for this escape; 0: the guard does not look at it. */
uint32_t judge_wants(uint32_t nr, uint32_t size);
/* The client that a call is made under; 0: none, or one that is yet to be made. */
uint32_t judge_client(const struct call *call);
bool judge_is_harmless_elsewhere(uint32_t nr, uint32_t size);
/* Under ledger_lock(). */
struct verdict judge(struct call *call);

/* Objects that the ledger keeps: what carries bytes, what the scheduler switches, and their parents. */
bool judge_is_tracked(uint32_t class);
/* Does an allocation with these attributes take video memory? */

#endif
