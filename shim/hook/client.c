/*
 * A client of the driver belongs to the process that makes it, for nvidia-smi and for all who ask. The guard makes
 * what counts itself; so the shim turns the making of a client into the call that the guard lets the process make:
 * the same without room for parameters, which no memory can be had by. docs/decisions.md says what becomes of others.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "driver_calls.h"
#include "hook.h"
#include "rm_abi.h"

static ioctl_function real_ioctl(void)
{
    static ioctl_function found;
    ioctl_function now = __atomic_load_n(&found, __ATOMIC_RELAXED);

    if (!now) {
        void *symbol = next_symbol("ioctl");
        memcpy(&now, &symbol, sizeof now);
        __atomic_store_n(&found, now, __ATOMIC_RELAXED);
    }
    return now;
}

/* plain_too: the emulated card's are plain files. */
static bool is_driver(int fd, bool plain_too)
{
    struct stat info;

    if (fstat(fd, &info) < 0)
        return false;
    return (S_ISCHR(info.st_mode) && major(info.st_rdev) == NV_MAJOR) || (plain_too && S_ISREG(info.st_mode));
}

/* Both forms of the call begin alike. Read so that a bad pointer is the kernel's to speak of. */
static bool asks_for_client(const void *call, struct nvos21 *copy)
{
    struct iovec here = {copy, sizeof *copy}, there = {(void *)(uintptr_t)call, sizeof *copy};

    return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == (ssize_t)sizeof *copy && NV_CLASS_IS_ROOT(copy->class);
}

static int make_client(int fd, const struct nvos21 *asked, void *call, size_t status_offset)
{
    struct nvos05 made = {.root = asked->root, .parent = asked->parent, .object = asked->object, .class = asked->class};
    int rc = real_ioctl()(fd, NV_REQUEST(NV_ESC_RM_ALLOC_OBJECT, struct nvos05), &made);

    if (rc == 0) {
        ((struct nvos21 *)call)->object = made.object;
        memcpy((char *)call + status_offset, &made.status, sizeof made.status);
    }
    return rc;
}

API int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;

    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (_IOC_TYPE((uint32_t)request) != NV_IOCTL_MAGIC || !slice_directory())
        return real_ioctl()(fd, request, argument);
    if (tier_is_shim())
        return driver_call_matters(request) && is_driver(fd, true)
                   ? driver_call(fd, (uint32_t)request, argument, real_ioctl())
                   : real_ioctl()(fd, request, argument);
    /* callers may hand over a signed number */
    bool longer = (uint32_t)request == NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64);
    bool shorter = (uint32_t)request == NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos21);
    struct nvos21 asked;
    if (!(longer || shorter) || !is_driver(fd, false) || !asks_for_client(argument, &asked))
        return real_ioctl()(fd, request, argument);
    return make_client(fd, &asked, argument,
                       longer ? offsetof(struct nvos64, status) : offsetof(struct nvos21, status));
}
