/* The guard's only seam to hardware. */
#ifndef VGPU_GUARD_BACKEND_H
#define VGPU_GUARD_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#include "rm_abi.h"

#define MAX_GPUS 64
#define UNGUARDED "-" /* a GPU that has its number and is never opened: nobody gets onto it through the guard */

struct channel {
    uint32_t root, handle;
};

/* How far a channel's ring was filled by its tenant, and read by the GPU. Both NULL: it can't be seen. */
struct ring {
    const volatile uint32_t *get, *put;
    void *mapping; /* the backend's */
};

/* Where the channel's client has it: in a piece of memory of so many bytes. memory 0: nobody knows. */
struct ring_place {
    uint32_t memory;
    uint64_t offset, size;
};

/* What a tenant's descriptor is. */
enum file_kind {
    FILE_OTHER,   /* not the driver's */
    FILE_CONTROL, /* clients live on it: everything that counts is asked of such a file */
    FILE_GPU,     /* a GPU's own node: the driver makes nothing but events and pinned host memory there */
};

struct backend {
    const char *name;
    /* Open what the guard itself needs on GPU `index`: a PCI bus id, or an emulated device's file. Dies when it can't.
     */
    void (*open)(int index, const char *where);
    /* Which of the guard's GPUs a device object made so is of; -1: none of them. */
    int (*gpu_of_device)(int fd, const struct nv0080_alloc_params *params);
    enum file_kind (*kind)(int fd);
    /* Does the guard make clients itself? Else the kernel does, for a client is its maker's: see perform.c. */
    bool performs_roots;
    /* Do the tenant's ioctl on its own descriptor, with the guard's copy of the arguments. 0 or -errno. */
    int (*perform)(int fd, pid_t pid, unsigned long request, void *arg);
    /* Is any descriptor of the client's file still open? NULL: files.h tells. */
    bool (*client_lives)(uint32_t root);
    /* By the driver's own account: memory on GPU `index` of what these processes made. False: it does not say. */
    bool (*memory_of)(int index, const pid_t *pids, int count, uint64_t *bytes);
    /* After the tenant had a channel scheduled, leave it alone for so long: the kernel is still at it. */
    uint64_t settle_ns;
    /* Take channels off GPU `index`, or put them back. 0, or the driver's status. */
    uint32_t (*set_channels)(int index, const struct channel *channels, int count, bool on);
    /* The client lets the guard see its memory `userd`; `fd` is the client's own file. */
    bool (*share_ring)(int index, int fd, const struct channel *channel, uint32_t userd);
    /* See the ring of a channel on GPU `index`, in memory that was shared. For its scheduler's thread alone. */
    bool (*open_ring)(int index, const struct channel *channel, const struct ring_place *place, struct ring *ring);
    void (*close_ring)(int index, struct ring *ring);
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

/* A harmless question that only the client's own file may ask; `ids` takes the answer. */
static inline struct nvos54 client_question(uint32_t client, uint32_t ids[NV0000_PROBED_IDS_WORDS])
{
    memset(ids, 0, NV0000_PROBED_IDS_WORDS * sizeof *ids);
    return (struct nvos54){.client = client,
                           .object = client,
                           .command = NV0000_CTRL_CMD_GPU_GET_PROBED_IDS,
                           .params = (uintptr_t)ids,
                           .params_size = NV0000_PROBED_IDS_WORDS * sizeof *ids};
}

extern const struct backend backend_nvidia, backend_emulated;
extern const struct backend *backend;
extern int gpu_count;

#endif
