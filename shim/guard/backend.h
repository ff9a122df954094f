/* The guard's only seam to hardware. */
#ifndef VGPU_GUARD_BACKEND_H
#define VGPU_GUARD_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "rm_abi.h"

#define MAX_GPUS 64

struct channel {
    uint32_t root, handle;
};

struct backend {
    const char *name;
    /* Open what the guard itself needs on GPU `index`: a PCI bus id, or an emulated device's file. Dies when it can't.
     */
    void (*open)(int index, const char *where);
    /* Is this descriptor, duplicated from a tenant, the driver's? */
    bool (*is_driver)(int fd);
    /* Which RM_ALLOC classes the guard performs itself; the rest the kernel does for the tenant. */
    bool (*performs)(uint32_t class);
    /* Do the tenant's ioctl on its own descriptor, with the guard's copy of the arguments. 0 or -errno. */
    int (*perform)(int fd, pid_t pid, unsigned long request, void *arg);
    /* After the tenant had a channel scheduled, leave it alone for so long: the kernel is still at it. */
    uint64_t settle_ns;
    /* Take channels off GPU `index`, or put them back. 0, or the driver's status. */
    uint32_t (*set_channels)(int index, const struct channel *channels, int count, bool on);
};

/* The driver's request that takes channels off or puts them on: at most NV2080_FIFO_DISABLE_CHANNELS_MAX of them. */
static inline struct nv2080_fifo_disable_channels channel_request(const struct channel *channels, int count, bool on)
{
    struct nv2080_fifo_disable_channels request = {.disable = !on, .count = (uint32_t)count};

    for (int i = 0; i < count; i++) {
        request.clients[i] = channels[i].root;
        request.channels[i] = channels[i].handle;
    }
    return request;
}

extern const struct backend backend_nvidia, backend_emulated;
extern const struct backend *backend;
extern int gpu_count;

#endif
