/*
 * Takes device memory by one path until refused, and says how much it got.
 *
 * fill PATH [BLOCK_MIB]   {"path", "bytes", "error"}; then waits for a line, so that somebody can look with NVML
 * PATH: malloc pitch array mipmap vmm async pool graph context module managed
 */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(call)                                                     \
    do {                                                                \
        CUresult result_ = (call);                                      \
        if (result_ != CUDA_SUCCESS) {                                  \
            fprintf(stderr, "fill: %s: %s\n", #call, name_of(result_)); \
            exit(1);                                                    \
        }                                                               \
    } while (0)
#define ENOUGH (400ull << 30)

static CUdevice device;
static size_t block = 32u << 20;

static const char *name_of(CUresult result)
{
    const char *name = NULL;
    cuGetErrorName(result, &name);
    return name ? name : "?";
}

static CUresult by_malloc(void)
{
    CUdeviceptr memory;
    return cuMemAlloc(&memory, block);
}

static CUresult by_pitch(void)
{
    CUdeviceptr memory;
    size_t pitch;
    return cuMemAllocPitch(&memory, &pitch, 8192, block / 8192, 4);
}

static CUresult by_array(void)
{
    CUDA_ARRAY_DESCRIPTOR shape = {
        .Width = 4096, .Height = block / 4096 / 4, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1};
    CUarray array;
    return cuArrayCreate(&array, &shape);
}

static CUresult by_mipmap(void)
{
    CUDA_ARRAY3D_DESCRIPTOR shape = {
        .Width = 2048, .Height = block / 2048 / 4, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1};
    CUmipmappedArray array;
    return cuMipmappedArrayCreate(&array, &shape, 4);
}

static CUresult by_vmm(void)
{
    CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
    CUmemGenericAllocationHandle handle;
    return cuMemCreate(&handle, block, &properties, 0);
}

static CUresult by_async(void)
{
    CUdeviceptr memory;
    return cuMemAllocAsync(&memory, block, NULL);
}

static CUresult by_pool(void)
{
    static CUmemoryPool pool;
    CUmemPoolProps properties = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
    CUdeviceptr memory;

    if (!pool)
        CHECK(cuMemPoolCreate(&pool, &properties));
    return cuMemAllocFromPoolAsync(&memory, block, pool, NULL);
}

static CUresult by_graph(void)
{
    CUDA_MEM_ALLOC_NODE_PARAMS parameters = {
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}},
        .bytesize = block};
    CUgraph graph;
    CUgraphNode node;
    CUgraphExec exec;

    CHECK(cuGraphCreate(&graph, 0));
    CUresult result = cuGraphAddMemAllocNode(&node, graph, NULL, 0, &parameters);
    if (result == CUDA_SUCCESS)
        result = cuGraphInstantiate(&exec, graph, 0);
    if (result == CUDA_SUCCESS)
        result = cuGraphLaunch(exec, NULL);
    return result == CUDA_SUCCESS ? cuCtxSynchronize() : result;
}

static CUresult by_context(void)
{
    CUcontext context;
#if CUDA_VERSION >= 13000
    return cuCtxCreate(&context, NULL, 0, device);
#else
    return cuCtxCreate(&context, 0, device);
#endif
}

/* A module with a 32 MiB variable in it. */
static CUresult by_module(void)
{
    CUmodule module;
    char source[256];

    snprintf(source, sizeof source,
             ".version 7.0\n.target sm_70\n.address_size 64\n.visible .global .align 8 .b8 big[%zu];\n", block);
    return cuModuleLoadData(&module, source);
}

static CUresult by_managed(void)
{
    CUdeviceptr memory;
    CUresult result = cuMemAllocManaged(&memory, block, CU_MEM_ATTACH_GLOBAL);
    return result == CUDA_SUCCESS ? cuMemsetD8(memory, 1, block) : result;
}

static const struct {
    const char *name;
    CUresult (*take)(void);
} paths[] = {{"malloc", by_malloc},   {"pitch", by_pitch},   {"array", by_array},    {"mipmap", by_mipmap},
             {"vmm", by_vmm},         {"async", by_async},   {"pool", by_pool},      {"graph", by_graph},
             {"context", by_context}, {"module", by_module}, {"managed", by_managed}};

int main(int argc, char **argv)
{
    CUresult result = CUDA_SUCCESS;
    CUcontext context;
    unsigned long long bytes = 0;
    size_t path = 0;

    while (path < sizeof paths / sizeof *paths && (argc < 2 || strcmp(paths[path].name, argv[1]) != 0))
        path++;
    if (path == sizeof paths / sizeof *paths)
        return 2;
    if (argc > 2)
        block = strtoull(argv[2], NULL, 10) << 20;
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    while (bytes < ENOUGH && (result = paths[path].take()) == CUDA_SUCCESS) {
        bytes += block;
        /* asynchronous paths tell here */
        if ((result = cuStreamSynchronize(NULL)) != CUDA_SUCCESS)
            break;
    }
    printf("{\"path\": \"%s\", \"bytes\": %llu, \"error\": \"%s\"}\n", argv[1], bytes, name_of(result));
    fflush(stdout);
    return getchar() < 0;
}
