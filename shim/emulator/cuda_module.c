#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_state.h"

static uint64_t allocate_global(void *context, uint64_t size)
{
    CUdeviceptr address = 0;
    return device_alloc(context, size, &address) == CUDA_SUCCESS ? address : 0;
}

/* An option's value is either the number itself or a pointer to the caller's buffer. */
static void give_log(const char *log, unsigned count, const int *options, void **values)
{
    char *buffer = NULL;
    size_t size = 0;

    for (unsigned i = 0; i < count; i++) {
        if (options[i] == JIT_ERROR_LOG_BUFFER)
            buffer = values[i];
        if (options[i] == JIT_ERROR_LOG_BUFFER_SIZE)
            size = (size_t)(uintptr_t)values[i];
    }
    if (buffer && size)
        snprintf(buffer, size, "%s", log);
}

static CUresult load(struct module **out, const void *image, unsigned count, const int *options, void **values)
{
    struct context *context;
    char log[1024];
    CUresult rc = current(&context);

    if (rc != CUDA_SUCCESS)
        return rc;
    if (!out || !image)
        return CUDA_ERROR_INVALID_VALUE;
    if (memcmp(image,
               "\x7f"
               "ELF",
               4) == 0 ||
        *(const uint32_t *)image == 0xBA55ED50u /* fatbin */) {
        const char *why = "vgpu: the emulated GPU runs PTX; this is compiled machine code. Compile to PTX.\n";
        give_log(why, count, options, values);
        fputs(why, stderr);
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    struct module *module = calloc(1, sizeof *module);
    if (!module)
        return CUDA_ERROR_OUT_OF_MEMORY;
    module->context = context;
    module->ptx = ptx_load(image, allocate_global, context, log, sizeof log);
    if (module->ptx)
        module->functions = calloc(module->ptx->kernel_count + 1, sizeof *module->functions);
    if (!module->ptx || !module->functions) {
        give_log(log, count, options, values);
        /* CUDA's callers seldom ask for the log, so say it where a notebook shows it */
        fprintf(stderr, "vgpu: the emulated GPU cannot load this module: %s\n", log);
        ptx_free(module->ptx);
        free(module);
        return CUDA_ERROR_INVALID_PTX;
    }
    for (uint32_t i = 0; i < module->ptx->kernel_count; i++)
        module->functions[i] = (struct function){module, &module->ptx->kernels[i]};
    *out = module;
    return CUDA_SUCCESS;
}

static CUresult unload(struct module *module)
{
    if (!module)
        return CUDA_ERROR_INVALID_HANDLE;
    wait_for(module->context, module->context->submitted);
    for (uint32_t i = 0; i < module->ptx->global_count; i++)
        device_free(module->ptx->globals[i].address);
    ptx_free(module->ptx);
    free(module->functions);
    free(module);
    return CUDA_SUCCESS;
}

static CUresult function_named(struct function **out, struct module *module, const char *name)
{
    if (!out || !module || !name)
        return CUDA_ERROR_INVALID_VALUE;
    for (uint32_t i = 0; i < module->ptx->kernel_count; i++)
        if (strcmp(module->functions[i].kernel->name, name) == 0) {
            *out = &module->functions[i];
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_NOT_FOUND;
}

static CUresult global_named(CUdeviceptr *address, size_t *size, struct module *module, const char *name)
{
    if (!module || !name)
        return CUDA_ERROR_INVALID_VALUE;
    for (uint32_t i = 0; i < module->ptx->global_count; i++)
        if (strcmp(module->ptx->globals[i].name, name) == 0) {
            if (address)
                *address = module->ptx->globals[i].address;
            if (size)
                *size = module->ptx->globals[i].size;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_NOT_FOUND;
}

API CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, int *options, void **values)
{
    return load(module, image, count, options, values);
}
API CUresult cuModuleLoadData(CUmodule *module, const void *image) { return load(module, image, 0, NULL, NULL); }
API CUresult cuModuleUnload(CUmodule module) { return unload(module); }
API CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    return function_named(function, module, name);
}
API CUresult cuModuleGetGlobal_v2(CUdeviceptr *address, size_t *size, CUmodule module, const char *name)
{
    return global_named(address, size, module, name);
}

API CUresult cuLibraryLoadData(CUlibrary *library, const void *code, int *jit, void **jit_values, unsigned jit_count,
                               int *options, void **values, unsigned count)
{
    (void)options, (void)values, (void)count;
    return load(library, code, jit_count, jit, jit_values);
}
API CUresult cuLibraryUnload(CUlibrary library) { return unload(library); }
API CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    return function_named(kernel, library, name);
}
API CUresult cuLibraryGetModule(CUmodule *module, CUlibrary library)
{
    *module = library;
    return CUDA_SUCCESS;
}
API CUresult cuLibraryGetGlobal(CUdeviceptr *address, size_t *size, CUlibrary library, const char *name)
{
    return global_named(address, size, library, name);
}
API CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    *function = kernel;
    return CUDA_SUCCESS;
}
API CUresult cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t *offset, size_t *size)
{
    if (!kernel || !offset || index >= kernel->kernel->parameter_count)
        return CUDA_ERROR_INVALID_VALUE;
    *offset = kernel->kernel->parameters[index].offset;
    if (size)
        *size = kernel->kernel->parameters[index].size;
    return CUDA_SUCCESS;
}
API CUresult cuFuncGetParamInfo(CUfunction function, size_t index, size_t *offset, size_t *size)
{
    return cuKernelGetParamInfo(function, index, offset, size);
}

API CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function)
{
    if (!value || !function)
        return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case FUNCTION_MAX_THREADS_PER_BLOCK: *value = (int)function->kernel->max_threads; break;
    case FUNCTION_SHARED_SIZE: *value = (int)function->kernel->shared_bytes; break;
    case FUNCTION_LOCAL_SIZE: *value = (int)function->kernel->local_bytes; break;
    case FUNCTION_NUM_REGS: *value = 32; break;
    case FUNCTION_PTX_VERSION:
    case FUNCTION_BINARY_VERSION: *value = 90; break;
    case FUNCTION_MAX_DYNAMIC_SHARED_SIZE: *value = 49152 - (int)function->kernel->shared_bytes; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}
API CUresult cuKernelGetAttribute(int *value, int attribute, CUkernel kernel, CUdevice device)
{
    (void)device;
    return cuFuncGetAttribute(value, attribute, kernel);
}
API CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value)
{
    (void)attribute;
    return function && value <= 49152 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
API CUresult cuFuncSetCacheConfig(CUfunction function, int config)
{
    (void)config;
    return function ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int size, size_t shared)
{
    (void)shared;
    if (!blocks || !function || size <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    *blocks = 2048 / size < 32 ? 2048 / size : 32;
    return CUDA_SUCCESS;
}

/* --- launches --- */

struct kernel_task {
    const struct ptx_kernel *kernel;
    uint32_t grid[3], block[3], shared;
    unsigned char parameters[];
};

/* A kernel on its way: what it used of the GPU is told as it goes, for one may run for long. */
struct run {
    struct context *context;
    struct timespec counted; /* of this thread's time: time off the GPU is no use of it */
};

static void count_busy(struct run *run)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    int64_t busy = (now.tv_sec - run->counted.tv_sec) * 1000000000ll + now.tv_nsec - run->counted.tv_nsec;
    __atomic_add_fetch(&run->context->client->busy_ns, (uint64_t)busy, __ATOMIC_RELAXED);
    run->counted = now;
}

static void before_block(void *run)
{
    count_busy(run);
    emu_wait_enabled(((struct run *)run)->context->channel_object);
}

static CUresult run_kernel(struct context *context, void *argument)
{
    static const CUresult results[] = {
        [PTX_OK] = CUDA_SUCCESS,
        [PTX_ILLEGAL_ADDRESS] = CUDA_ERROR_ILLEGAL_ADDRESS,
        [PTX_TRAP] = CUDA_ERROR_LAUNCH_FAILED,
        [PTX_MISALIGNED] = CUDA_ERROR_MISALIGNED_ADDRESS,
        [PTX_NO_HOST_MEMORY] = CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
    };
    struct kernel_task *task = argument;
    struct run run = {.context = context};
    struct ptx_launch launch = {.kernel = task->kernel,
                                .parameters = task->parameters,
                                .dynamic_shared = task->shared,
                                .readable = is_device_memory,
                                .before_block = before_block,
                                .context = &run};

    memcpy(launch.grid, task->grid, sizeof launch.grid);
    memcpy(launch.block, task->block, sizeof launch.block);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &run.counted);
    enum ptx_result result = ptx_run(&launch);
    count_busy(&run);
    __atomic_add_fetch(&context->client->launches, 1, __ATOMIC_RELAXED);
    return results[result];
}

static CUresult gather(const struct ptx_kernel *kernel, unsigned char *out, void **parameters, void **extra)
{
    if (parameters) {
        for (uint32_t i = 0; i < kernel->parameter_count; i++)
            memcpy(out + kernel->parameters[i].offset, parameters[i], kernel->parameters[i].size);
        return CUDA_SUCCESS;
    }
    if (!extra)
        return kernel->parameter_count ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    /* CU_LAUNCH_PARAM_BUFFER_POINTER is 1, CU_LAUNCH_PARAM_BUFFER_SIZE is 2, CU_LAUNCH_PARAM_END is 0 */
    const void *buffer = NULL;
    size_t size = 0;
    for (; extra[0]; extra += 2) {
        if ((uintptr_t)extra[0] == 1)
            buffer = extra[1];
        if ((uintptr_t)extra[0] == 2)
            size = *(size_t *)extra[1];
    }
    if (!buffer || size > kernel->parameter_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(out, buffer, size);
    return CUDA_SUCCESS;
}

API CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned shared, CUstream handle, void **parameters, void **extra)
{
    struct context *context;
    struct stream *stream;
    CUresult rc = stream_of(handle, &context, &stream);

    if (rc != CUDA_SUCCESS)
        return rc;
    if (!function)
        return CUDA_ERROR_INVALID_HANDLE;
    const struct ptx_kernel *kernel = function->kernel;
    if (!gx || !gy || !gz || !bx || !by || !bz || gx > INT32_MAX || gy > 65535 || gz > 65535 || bx > 1024 ||
        by > 1024 || bz > 64 || bx * by * bz > 1024 || shared > 49152 || kernel->shared_bytes + shared > 49152)
        return CUDA_ERROR_INVALID_VALUE;
    if (bx * by * bz > kernel->max_threads)
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    size_t size = sizeof(struct kernel_task) + kernel->parameter_bytes;
    struct kernel_task *task = calloc(1, size);
    if (!task)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *task = (struct kernel_task){.kernel = kernel, .grid = {gx, gy, gz}, .block = {bx, by, bz}, .shared = shared};
    rc = gather(kernel, task->parameters, parameters, extra);
    if (rc == CUDA_SUCCESS)
        rc = submit(context, stream, run_kernel, task, size, NULL);
    free(task);
    return rc;
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **parameters, void **extra)
{
    if (!c)
        return CUDA_ERROR_INVALID_VALUE;
    return cuLaunchKernel(function, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
                          c->sharedMemBytes, c->hStream, parameters, extra);
}
