#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cuda_state.h"
#include "rm_abi.h"

struct gpu gpus[EMU_MAX_DEVICES];
int gpu_count;

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t initialised_by;

#define STACK_DEPTH 32
static _Thread_local struct {
    struct context *items[STACK_DEPTH];
    int depth;
} stack;

/* --- the driver --- */

/* Ask as every CUDA program does; where nobody answers for the device, this library is the kernel driver. */
static uint32_t rm_ioctl(struct gpu *gpu, unsigned long request, void *arg, const uint32_t *status)
{
    if (ioctl(gpu->driver.fd, request, arg) == 0)
        return *status;
    if (errno != ENOTTY || emu_ioctl(&gpu->driver, gpu->driver.fd, getpid(), request, arg) < 0)
        return NV_ERR_OPERATING_SYSTEM;
    return *status;
}

/* For libvgpu.so, which counts what it lets through: see hook/driver_calls.c. Returns 0 or -1 with errno. */
API int vgpu_emulated_ioctl(int fd, unsigned long request, void *arg)
{
    for (int i = 0; i < gpu_count; i++) {
        if (gpus[i].driver.fd != fd)
            continue;
        int rc = emu_ioctl(&gpus[i].driver, fd, getpid(), request, arg);
        errno = -rc;
        return rc < 0 ? -1 : 0;
    }
    errno = ENOTTY;
    return -1;
}

uint32_t rm_alloc(struct gpu *gpu, uint32_t parent, uint32_t *handle, uint32_t class, void *params, uint32_t size)
{
    struct nvos64 call = {
        .root = gpu->client, .parent = parent, .class = class, .params = (uintptr_t)params, .params_size = size};

    if (gpu->client)
        call.object = 0x5C000000u + __atomic_add_fetch(&gpu->next_handle, 1, __ATOMIC_RELAXED);
    uint32_t status = rm_ioctl(gpu, NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64), &call, &call.status);
    *handle = status == NV_OK ? call.object : 0;
    return status;
}

uint32_t rm_free(struct gpu *gpu, uint32_t handle)
{
    struct nvos00 call = {.root = gpu->client, .parent = gpu->device, .object = handle};
    return rm_ioctl(gpu, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), &call, &call.status);
}

static uint32_t rm_control(struct gpu *gpu, uint32_t object, uint32_t command, void *params, uint32_t size)
{
    struct nvos54 call = {
        .client = gpu->client, .object = object, .command = command, .params = (uintptr_t)params, .params_size = size};
    return rm_ioctl(gpu, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), &call, &call.status);
}

static CUresult attach(struct gpu *gpu)
{
    struct nv0080_alloc_params device = {0};
    struct nv2080_alloc_params subdevice = {0};

    if (rm_alloc(gpu, 0, &gpu->client, NV01_ROOT_CLIENT, NULL, 0) != NV_OK)
        return CUDA_ERROR_OPERATING_SYSTEM;
    if (rm_alloc(gpu, gpu->client, &gpu->device, NV01_DEVICE_0, &device, sizeof device) != NV_OK ||
        rm_alloc(gpu, gpu->device, &gpu->subdevice, NV20_SUBDEVICE_0, &subdevice, sizeof subdevice) != NV_OK)
        return CUDA_ERROR_OPERATING_SYSTEM;
    return CUDA_SUCCESS;
}

/* CUDA_VISIBLE_DEVICES: indices or UUIDs (or their beginnings); the list ends at the first that is neither. */
static void open_visible(char paths[][512], int count)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    struct emu_driver all[EMU_MAX_DEVICES];
    bool used[EMU_MAX_DEVICES] = {false};
    char list[1024], *rest = list;

    for (int i = 0; i < count; i++)
        if (emu_open(&all[i], paths[i]) < 0)
            all[i].device = NULL;
    snprintf(list, sizeof list, "%s", visible ? visible : "");
    for (int n = 0; visible ? rest != NULL : n < count; n++) {
        char *item = visible ? strsep(&rest, ",") : NULL, *end = NULL;
        int pick = visible ? -1 : n;
        if (item && (strncasecmp(item, "GPU-", 4) == 0 || strncasecmp(item, "MIG-", 4) == 0)) {
            for (int i = 0; i < count && pick < 0; i++)
                if (all[i].device && strncasecmp(all[i].device->uuid, item, strlen(item)) == 0)
                    pick = i;
        } else if (item && *item) {
            long index = strtol(item, &end, 10);
            pick = *end == 0 && index >= 0 && index < count ? (int)index : -1;
        }
        if (pick < 0 || used[pick])
            break;
        if (!all[pick].device)
            continue;
        used[pick] = true;
        gpus[gpu_count++].driver = all[pick];
    }
    for (int i = 0; i < count; i++)
        if (!used[i] && all[i].device)
            emu_close(&all[i]);
}

API CUresult cuInit(unsigned flags)
{
    static char paths[EMU_MAX_DEVICES][512];
    CUresult rc = CUDA_SUCCESS;

    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&init_lock);
    if (initialised_by == 0) {
        open_visible(paths, emu_discover(paths, EMU_MAX_DEVICES));
        for (int i = 0; i < gpu_count && rc == CUDA_SUCCESS; i++)
            rc = attach(&gpus[i]);
        if (rc == CUDA_SUCCESS && gpu_count == 0)
            rc = CUDA_ERROR_NO_DEVICE;
        if (rc == CUDA_SUCCESS)
            initialised_by = getpid();
        for (; rc != CUDA_SUCCESS && gpu_count > 0; gpu_count--) {
            emu_close(&gpus[gpu_count - 1].driver);
            gpus[gpu_count - 1] = (struct gpu){0};
        }
    } else if (initialised_by != getpid()) {
        rc = CUDA_ERROR_NOT_INITIALIZED; /* CUDA does not survive fork */
    }
    pthread_mutex_unlock(&init_lock);
    return rc;
}

CUresult ready(void)
{
    return initialised_by && initialised_by == getpid() ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

/* --- devices --- */

static CUresult gpu_of(CUdevice ordinal, struct gpu **gpu)
{
    if (ready() != CUDA_SUCCESS)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= gpu_count)
        return CUDA_ERROR_INVALID_DEVICE;
    *gpu = &gpus[ordinal];
    return CUDA_SUCCESS;
}
#define GPU(ordinal)                             \
    struct gpu *gpu;                             \
    do {                                         \
        CUresult found_ = gpu_of(ordinal, &gpu); \
        if (found_ != CUDA_SUCCESS)              \
            return found_;                       \
    } while (0)
#define NEEDS(pointer)                       \
    do {                                     \
        if (!(pointer))                      \
            return CUDA_ERROR_INVALID_VALUE; \
    } while (0)

API CUresult cuDriverGetVersion(int *version)
{
    NEEDS(version);
    *version = CUDA_API_VERSION;
    return CUDA_SUCCESS;
}
API CUresult cuDeviceGetCount(int *count)
{
    NEEDS(count);
    *count = gpu_count;
    return ready();
}
API CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    GPU(ordinal);
    NEEDS(device);
    (void)gpu;
    *device = ordinal;
    return CUDA_SUCCESS;
}
API CUresult cuDeviceGetName(char *name, int length, CUdevice ordinal)
{
    GPU(ordinal);
    NEEDS(name && length > 0);
    snprintf(name, (size_t)length, "%s", gpu->driver.device->name);
    return CUDA_SUCCESS;
}
API CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice ordinal)
{
    GPU(ordinal);
    NEEDS(uuid);
    const char *text = gpu->driver.device->uuid + strlen("GPU-");
    for (int i = 0; i < 16; i++) {
        unsigned byte = 0;
        text += *text == '-';
        sscanf(text, "%2x", &byte);
        text += 2;
        uuid->bytes[i] = (unsigned char)byte;
    }
    return CUDA_SUCCESS;
}
API CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice ordinal) { return cuDeviceGetUuid(uuid, ordinal); }
API CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice ordinal)
{
    GPU(ordinal);
    NEEDS(bytes);
    *bytes = gpu->driver.device->memory_total;
    return CUDA_SUCCESS;
}
API CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice ordinal)
{
    static const int answers[] = {
        [ATTRIBUTE_MAX_THREADS_PER_BLOCK] = 1024,
        [ATTRIBUTE_MAX_BLOCK_DIM_X] = 1024,
        [ATTRIBUTE_MAX_BLOCK_DIM_Y] = 1024,
        [ATTRIBUTE_MAX_BLOCK_DIM_Z] = 64,
        [ATTRIBUTE_MAX_GRID_DIM_X] = 2147483647,
        [ATTRIBUTE_MAX_GRID_DIM_Y] = 65535,
        [ATTRIBUTE_MAX_GRID_DIM_Z] = 65535,
        [ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK] = 49152,
        [ATTRIBUTE_TOTAL_CONSTANT_MEMORY] = 65536,
        [ATTRIBUTE_WARP_SIZE] = 32,
        [ATTRIBUTE_MAX_PITCH] = 2147483647,
        [ATTRIBUTE_MAX_REGISTERS_PER_BLOCK] = 65536,
        [ATTRIBUTE_CLOCK_RATE] = 1000000,
        [ATTRIBUTE_TEXTURE_ALIGNMENT] = 512,
        [ATTRIBUTE_GPU_OVERLAP] = 1,
        [ATTRIBUTE_MULTIPROCESSOR_COUNT] = 1,
        [ATTRIBUTE_CAN_MAP_HOST_MEMORY] = 1,
        [ATTRIBUTE_MEMORY_CLOCK_RATE] = 1000000,
        [ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH] = 64,
        [ATTRIBUTE_L2_CACHE_SIZE] = 1 << 20,
        [ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR] = 2048,
        [ATTRIBUTE_ASYNC_ENGINE_COUNT] = 1,
        [ATTRIBUTE_UNIFIED_ADDRESSING] = 1,
        [ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] = 9,
        [ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR] = 233472,
        [ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR] = 65536,
        [ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN] = 49152,
        [ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR] = 32,
    };
    GPU(ordinal);
    NEEDS(value && attribute > 0);
    (void)gpu;
    *value = attribute < (int)(sizeof answers / sizeof *answers) ? answers[attribute] : 0;
    return CUDA_SUCCESS;
}
API CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice ordinal)
{
    GPU(ordinal);
    NEEDS(id && length > 0);
    (void)gpu;
    snprintf(id, (size_t)length, "FFFF:%02X:00.0", ordinal);
    return CUDA_SUCCESS;
}
API CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice ordinal)
{
    CUresult rc = cuDeviceGetAttribute(major, ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ordinal);
    return rc ? rc : cuDeviceGetAttribute(minor, ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, ordinal);
}

/* --- contexts --- */

static void destroy_context(struct context *context)
{
    if (context->worker)
        stop_worker(context);
    free_allocations(context);
    if (context->group)
        rm_free(context->gpu, context->group); /* its channel goes with it */
    if (context->overhead)
        rm_free(context->gpu, context->overhead);
    pthread_mutex_destroy(&context->lock);
    pthread_cond_destroy(&context->changed);
    free(context);
}

static CUresult create_context(struct gpu *gpu, int ordinal, struct context **out)
{
    struct nv_memory_allocation_params overhead = {.size = EMU_CONTEXT_BYTES};
    struct context *context = calloc(1, sizeof *context);
    struct nva06c_gpfifo_schedule schedule = {.enable = 1};
    struct emu_device *device = gpu->driver.device;
    uint32_t status;

    if (!context)
        return CUDA_ERROR_OUT_OF_MEMORY;
    context->gpu = gpu;
    context->ordinal = ordinal;
    pthread_mutex_init(&context->lock, NULL);
    pthread_cond_init(&context->changed, NULL);
    status = rm_alloc(gpu, gpu->device, &context->overhead, NV01_MEMORY_LOCAL_USER, &overhead, sizeof overhead);
    if (status == NV_OK)
        status = rm_alloc(gpu, gpu->device, &context->group, KEPLER_CHANNEL_GROUP_A, NULL, 0);
    if (status == NV_OK)
        status = rm_alloc(gpu, context->group, &context->channel, HOPPER_CHANNEL_GPFIFO_A, NULL, 0);
    if (status == NV_OK)
        status = rm_control(gpu, context->group, NVA06C_CTRL_CMD_GPFIFO_SCHEDULE, &schedule, sizeof schedule);
    if (status == NV_OK)
        context->channel_object = emu_find(device, gpu->client, context->channel);
    for (int i = 0; i < EMU_CLIENTS; i++)
        if (device->clients[i].handle == gpu->client)
            context->client = &device->clients[i];
    CUresult rc = status == NV_ERR_NO_MEMORY                     ? CUDA_ERROR_OUT_OF_MEMORY
                  : !context->channel_object || !context->client ? CUDA_ERROR_OPERATING_SYSTEM
                                                                 : start_worker(context);
    if (rc != CUDA_SUCCESS) {
        destroy_context(context);
        return rc;
    }
    *out = context;
    return CUDA_SUCCESS;
}

CUresult current(struct context **context)
{
    if (ready() != CUDA_SUCCESS)
        return CUDA_ERROR_NOT_INITIALIZED;
    *context = stack.depth ? stack.items[stack.depth - 1] : NULL;
    return *context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

API CUresult cuCtxGetCurrent(CUcontext *context)
{
    NEEDS(context);
    *context = stack.depth ? stack.items[stack.depth - 1] : NULL;
    return ready();
}
API CUresult cuCtxSetCurrent(CUcontext context)
{
    if (stack.depth == 0)
        stack.depth = 1;
    stack.items[stack.depth - 1] = context;
    if (!context)
        stack.depth--;
    return ready();
}
API CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    NEEDS(context && stack.depth < STACK_DEPTH);
    stack.items[stack.depth++] = context;
    return ready();
}
API CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    if (!stack.depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    stack.depth--;
    if (context)
        *context = stack.items[stack.depth];
    return ready();
}
API CUresult cuCtxGetDevice(CUdevice *device)
{
    struct context *context;
    CUresult rc = current(&context);
    NEEDS(device);
    if (rc == CUDA_SUCCESS)
        *device = context->ordinal;
    return rc;
}
API CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext context)
{
    NEEDS(device);
    if (!context)
        return cuCtxGetDevice(device);
    *device = context->ordinal;
    return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice ordinal)
{
    GPU(ordinal);
    NEEDS(context);
    pthread_mutex_lock(&init_lock);
    CUresult rc = gpu->primary ? CUDA_SUCCESS : create_context(gpu, ordinal, &gpu->primary);
    if (rc == CUDA_SUCCESS)
        gpu->primary_users++;
    *context = gpu->primary;
    pthread_mutex_unlock(&init_lock);
    return rc;
}
static CUresult release_primary(CUdevice ordinal, bool all)
{
    struct context *gone = NULL;
    GPU(ordinal);

    pthread_mutex_lock(&init_lock);
    if (gpu->primary_users)
        gpu->primary_users = all ? 0 : gpu->primary_users - 1;
    if (!gpu->primary_users) {
        gone = gpu->primary;
        gpu->primary = NULL;
    }
    pthread_mutex_unlock(&init_lock);
    for (int i = 0; gone && i < stack.depth; i++)
        if (stack.items[i] == gone)
            stack.depth = i;
    if (gone)
        destroy_context(gone);
    return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) { return release_primary(ordinal, false); }
API CUresult cuDevicePrimaryCtxReset_v2(CUdevice ordinal) { return release_primary(ordinal, true); }
API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned flags)
{
    GPU(ordinal);
    (void)gpu, (void)flags;
    return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned *flags, int *active)
{
    GPU(ordinal);
    NEEDS(flags && active);
    *flags = 0;
    *active = gpu->primary != NULL;
    return CUDA_SUCCESS;
}
API CUresult cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice ordinal)
{
    GPU(ordinal);
    NEEDS(context);
    (void)flags;
    CUresult rc = create_context(gpu, ordinal, context);
    return rc == CUDA_SUCCESS ? cuCtxPushCurrent_v2(*context) : rc;
}
API CUresult cuCtxCreate_v4(CUcontext *context, void *params, unsigned flags, CUdevice ordinal)
{
    return params ? CUDA_ERROR_NOT_SUPPORTED : cuCtxCreate_v2(context, flags, ordinal);
}
API CUresult cuCtxDestroy_v2(CUcontext context)
{
    NEEDS(context);
    for (int i = 0; i < stack.depth; i++)
        if (stack.items[i] == context)
            stack.depth = i;
    destroy_context(context);
    return ready();
}
API CUresult cuCtxSynchronize(void)
{
    struct context *context;
    CUresult rc = current(&context);
    return rc ? rc : wait_for(context, context->submitted);
}
API CUresult cuCtxSynchronize_v2(CUcontext context)
{
    return context ? wait_for(context, context->submitted) : cuCtxSynchronize();
}
API CUresult cuCtxGetApiVersion(CUcontext context, unsigned *version)
{
    NEEDS(version);
    (void)context;
    *version = 3020;
    return CUDA_SUCCESS;
}
API CUresult cuCtxGetFlags(unsigned *flags)
{
    NEEDS(flags);
    *flags = 0;
    return CUDA_SUCCESS;
}
API CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    if (least)
        *least = 0;
    if (greatest)
        *greatest = 0;
    return CUDA_SUCCESS;
}
API CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    struct context *context;
    CUresult rc = current(&context);
    NEEDS(free_bytes && total);
    if (rc == CUDA_SUCCESS) {
        *free_bytes = emu_free_bytes(&context->gpu->driver);
        *total = context->gpu->driver.device->memory_total;
    }
    return rc;
}
