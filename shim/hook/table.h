/*
 * Every symbol that the shim answers instead of the driver. One line a symbol; the wrappers are in answers.c.
 *
 * ROW(symbol, name asked of cuGetProcAddress, first CUDA version with this form, stream, tiers)
 */
#ifndef VGPU_HOOK_TABLE_H
#define VGPU_HOOK_TABLE_H

enum stream_kind { STREAM_ANY, STREAM_LEGACY, STREAM_PER_THREAD };
enum tiers { TIERS_BOTH, TIERS_SHIM };

#define CUDA_ROWS(ROW)                                                                 \
    ROW(cuGetProcAddress, "cuGetProcAddress", 11030, STREAM_ANY, TIERS_BOTH)           \
    ROW(cuGetProcAddress_v2, "cuGetProcAddress", 12000, STREAM_ANY, TIERS_BOTH)        \
    ROW(cuMemGetInfo_v2, "cuMemGetInfo", 3020, STREAM_ANY, TIERS_BOTH)                 \
    ROW(cuDeviceTotalMem_v2, "cuDeviceTotalMem", 3020, STREAM_ANY, TIERS_BOTH)         \
    ROW(cuMemAlloc_v2, "cuMemAlloc", 3020, STREAM_ANY, TIERS_SHIM)                     \
    ROW(cuMemAllocPitch_v2, "cuMemAllocPitch", 3020, STREAM_ANY, TIERS_SHIM)           \
    ROW(cuMemAllocManaged, "cuMemAllocManaged", 6000, STREAM_ANY, TIERS_SHIM)          \
    ROW(cuMemAllocAsync, "cuMemAllocAsync", 11020, STREAM_LEGACY, TIERS_SHIM)          \
    ROW(cuMemAllocAsync_ptsz, "cuMemAllocAsync", 11020, STREAM_PER_THREAD, TIERS_SHIM) \
    ROW(cuMemFree_v2, "cuMemFree", 3020, STREAM_ANY, TIERS_SHIM)                       \
    ROW(cuMemFreeAsync, "cuMemFreeAsync", 11020, STREAM_LEGACY, TIERS_SHIM)            \
    ROW(cuMemFreeAsync_ptsz, "cuMemFreeAsync", 11020, STREAM_PER_THREAD, TIERS_SHIM)

#define NVML_ROWS(ROW)                                            \
    ROW(nvmlDeviceGetMemoryInfo, NULL, 0, STREAM_ANY, TIERS_BOTH) \
    ROW(nvmlDeviceGetMemoryInfo_v2, NULL, 0, STREAM_ANY, TIERS_BOTH)

enum row_id {
#define ROW(symbol, name, since, stream, tiers) ROW_##symbol,
    CUDA_ROWS(ROW) NVML_ROWS(ROW)
#undef ROW
        ROW_COUNT
};

#endif
