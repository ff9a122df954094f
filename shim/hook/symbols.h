/*
 * Every symbol of the driver's two libraries, and what becomes of it in a slice. The lists are cuda_symbols.def and
 * nvml_symbols.def; symbols.py holds them against the vendor's headers when this is built. Their classes, for hook.c:
 *
 * PASSES    the driver's own answer is right in a slice
 * ANSWERS   the driver's would speak of the whole card or of others: the shim's wrapper answers
 * ACCOUNTS  takes or gives back device memory, or a stream: counted at the driver; some are noted by a wrapper too
 * LAUNCHES  puts work on the GPU: counted; the guard's scheduler holds it, in tier `shim` pace.c
 * REFUSES   tells of other tenants, or gets memory past every account: "not supported"
 */
#ifndef VGPU_HOOK_SYMBOLS_H
#define VGPU_HOOK_SYMBOLS_H

enum stream_kind { ANY, LEGACY, PER_THREAD };

enum row_id {
#define S(symbol, name, since, stream, class) ROW_##symbol,
#include "cuda_symbols.def"
#undef S
    CUDA_ROWS,
    BEFORE_NVML = CUDA_ROWS - 1,
#define S(symbol, class) ROW_##symbol,
#include "nvml_symbols.def"
#undef S
    ALL_ROWS
};

/* The newest CUDA whose symbols are here: an application that asks for a newer one may get a form nobody here knows. */
#define CUDA_SYMBOLS_VERSION 13050

/* Those of class ACCOUNTS that have a wrapper: their bytes are counted at the driver, by guard or driver_calls.c. */
#define ACCOUNTED_SYMBOLS(W)        \
    W(cuMemAlloc_v2)                \
    W(cuMemAllocPitch_v2)           \
    W(cuMemAllocManaged)            \
    W(cuMemAllocAsync)              \
    W(cuMemAllocAsync_ptsz)         \
    W(cuMemFree_v2)                 \
    W(cuMemFreeAsync)               \
    W(cuMemFreeAsync_ptsz)          \
    W(cuCtxDestroy)                 \
    W(cuCtxDestroy_v2)              \
    W(cuDevicePrimaryCtxRelease)    \
    W(cuDevicePrimaryCtxRelease_v2) \
    W(cuDevicePrimaryCtxReset)      \
    W(cuDevicePrimaryCtxReset_v2)   \
    W(cuGreenCtxDestroy)            \
    W(cuStreamDestroy)              \
    W(cuStreamDestroy_v2)

#endif
