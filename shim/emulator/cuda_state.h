/* What the emulated libcuda keeps for one process. */
#ifndef VGPU_EMULATOR_CUDA_STATE_H
#define VGPU_EMULATOR_CUDA_STATE_H

#include <pthread.h>
#include <stdbool.h>

#include "cuda_api.h"
#include "device.h"
#include "ptx.h"

#define API __attribute__((visibility("default")))

struct gpu {
    struct emu_driver driver;
    uint32_t client, device, subdevice, next_handle; /* RM handles of this process */
    CUcontext primary;
    unsigned primary_users;
};

struct allocation {
    CUdeviceptr address;
    uint64_t size;
    uint32_t handle; /* its RM object; 0: host memory that the device may use */
    bool managed;    /* host memory too: the driver's managed memory is on no client's account either */
    struct context *context;
};

struct context {
    struct gpu *gpu;
    int ordinal;
    uint32_t group, channel, overhead; /* RM handles */
    struct emu_object *channel_object;
    struct emu_client *client;
    pthread_t worker;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct task *head, *tail;
    uint64_t submitted, fetched, finished; /* tasks run in order, so a ticket is done when finished >= ticket */
    CUresult sticky;                       /* a fault ends the context, as on the real device */
    bool closing;
};

struct stream {
    struct context *context;
    unsigned flags;
    int priority;
    uint64_t last;
};
struct event {
    uint64_t ticket, time_ns;
    unsigned flags;
    struct context *context;
};
struct function {
    struct module *module;
    const struct ptx_kernel *kernel;
};
struct module {
    struct context *context;
    struct ptx_module *ptx;
    struct function *functions;
};

/* cuda_device.c */
extern struct gpu gpus[EMU_MAX_DEVICES];
extern int gpu_count;
CUresult ready(void);                       /* initialised and not in a forked child? */
CUresult current(struct context **context); /* the thread's context */
uint32_t rm_alloc(struct gpu *gpu, uint32_t parent, uint32_t *handle, uint32_t class, void *params, uint32_t size);
uint32_t rm_free(struct gpu *gpu, uint32_t handle);

/* cuda_memory.c */
CUresult device_alloc(struct context *context, uint64_t size, CUdeviceptr *out);
CUresult device_free(CUdeviceptr address);
bool is_device_memory(void *unused, uint64_t address, uint64_t size);
void free_allocations(struct context *context);

/* cuda_queue.c: one worker a context runs everything that is asynchronous, in order */
typedef CUresult (*work)(struct context *, void *argument);
CUresult submit(struct context *context, struct stream *stream, work run, const void *argument, size_t size,
                uint64_t *ticket);
CUresult wait_for(struct context *context, uint64_t ticket);
CUresult start_worker(struct context *context);
void stop_worker(struct context *context);
CUresult stream_of(CUstream handle, struct context **context, struct stream **stream);

#endif
