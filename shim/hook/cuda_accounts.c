/*
 * The calls that take and give back memory. Their bytes are counted at the driver, by the guard or by driver_calls.c;
 * but for managed memory, of which the driver's calls tell nothing. What was refused is told to the daemon by its CUDA
 * name. Types and numbers are those of cuda.h.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hook.h"
#include "pace.h"

typedef int CUresult, CUdevice;
typedef uint64_t CUdeviceptr;
typedef void *CUstream, *CUcontext, *CUgreenCtx;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_OUT_OF_MEMORY = 2, CUDA_ERROR_NOT_INITIALIZED = 3 };

/* The error stays CUDA's own; the daemon hears who was refused what. */
static CUresult explained(CUresult rc, const char *call, uint64_t bytes)
{
    if (rc == CUDA_ERROR_OUT_OF_MEMORY && slice_directory())
        report_refused(call, bytes);
    return rc;
}

/* Bytes are counted below, where libcuda asks the driver for them; here it is known what the call is named. */
#define EXPLAINED(next, bytes, call) explained((next) ? (call) : CUDA_ERROR_NOT_INITIALIZED, __func__, bytes)

/* What is about to be freed leaves the account of managed memory. */
static CUresult left(CUresult rc, CUdeviceptr address, uint64_t managed)
{
    if (managed && rc == CUDA_SUCCESS)
        managed_release(managed);
    else if (managed)
        managed_keep(address, managed);
    return rc;
}
#define FREED(next, address, call)            \
    uint64_t managed = managed_take(address); \
    return left((next) ? (call) : CUDA_ERROR_NOT_INITIALIZED, address, managed)

API CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t size)
{
    __typeof__(&cuMemAlloc_v2) next = REAL(cuMemAlloc_v2);
    return EXPLAINED(next, size, next(out, size));
}
static CUresult alloc_managed(CUresult (*next)(CUdeviceptr *, size_t, unsigned), CUdeviceptr *out, size_t size,
                              unsigned flags)
{
    if (!managed_reserve(size))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult rc = next(out, size, flags);
    if (rc == CUDA_SUCCESS)
        managed_keep(*out, size);
    else
        managed_release(size);
    return rc;
}
API CUresult cuMemAllocManaged(CUdeviceptr *out, size_t size, unsigned flags)
{
    __typeof__(&cuMemAllocManaged) next = REAL(cuMemAllocManaged);

    if (next && out && size && slice_directory())
        return explained(alloc_managed(next, out, size, flags), __func__, size);
    return EXPLAINED(next, size, next(out, size, flags));
}
API CUresult cuMemAllocAsync(CUdeviceptr *out, size_t size, CUstream stream)
{
    __typeof__(&cuMemAllocAsync) next = REAL(cuMemAllocAsync);
    return EXPLAINED(next, size, next(out, size, stream));
}
API CUresult cuMemAllocAsync_ptsz(CUdeviceptr *out, size_t size, CUstream stream)
{
    __typeof__(&cuMemAllocAsync_ptsz) next = REAL(cuMemAllocAsync_ptsz);
    return EXPLAINED(next, size, next(out, size, stream));
}
API CUresult cuMemAllocPitch_v2(CUdeviceptr *out, size_t *pitch, size_t width, size_t height, unsigned element)
{
    __typeof__(&cuMemAllocPitch_v2) next = REAL(cuMemAllocPitch_v2);
    return EXPLAINED(next, (uint64_t)width * height, next(out, pitch, width, height, element));
}
API CUresult cuMemFree_v2(CUdeviceptr address)
{
    __typeof__(&cuMemFree_v2) next = REAL(cuMemFree_v2);
    FREED(next, address, next(address));
}
API CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream)
{
    __typeof__(&cuMemFreeAsync) next = REAL(cuMemFreeAsync);
    FREED(next, address, next(address, stream));
}
API CUresult cuMemFreeAsync_ptsz(CUdeviceptr address, CUstream stream)
{
    __typeof__(&cuMemFreeAsync_ptsz) next = REAL(cuMemFreeAsync_ptsz);
    FREED(next, address, next(address, stream));
}

/* --- contexts: one takes its managed memory and its streams with it --- */

static CUresult ended(CUresult rc)
{
    if (rc == CUDA_SUCCESS)
        managed_sweep();
    return rc;
}

static CUresult destroy(CUresult (*next)(CUcontext), CUcontext context)
{
    pace_forget_context(context, NO_DEVICE);
    return ended(next ? next(context) : CUDA_ERROR_NOT_INITIALIZED);
}

static CUresult reset(CUresult (*next)(CUdevice), CUdevice device)
{
    pace_forget_context(NO_CONTEXT, device);
    return ended(next ? next(device) : CUDA_ERROR_NOT_INITIALIZED);
}

/* A primary context is gone with its last user. */
static bool is_active(CUdevice device)
{
    CUresult (*state)(CUdevice, unsigned *, int *) = (CUresult (*)(CUdevice, unsigned *, int *))real_symbol(
        "libcuda.so.1", "cuDevicePrimaryCtxGetState");
    unsigned flags;
    int active = 0;

    return state && state(device, &flags, &active) == CUDA_SUCCESS && active;
}

static CUresult release(CUresult (*next)(CUdevice), CUdevice device)
{
    bool held = pace_hold();
    CUresult rc = next ? next(device) : CUDA_ERROR_NOT_INITIALIZED;

    if (held)
        pace_let_go(rc == CUDA_SUCCESS && !is_active(device), device);
    return ended(rc);
}

static CUresult destroy_green(CUresult (*next)(CUgreenCtx), CUgreenCtx green)
{
    CUresult (*context_of)(CUcontext *, CUgreenCtx) = (CUresult (*)(CUcontext *, CUgreenCtx))real_symbol(
        "libcuda.so.1", "cuCtxFromGreenCtx");
    CUcontext context = NULL;

    if (green && context_of && context_of(&context, green) == CUDA_SUCCESS)
        pace_forget_green(green, context);
    return next ? next(green) : CUDA_ERROR_NOT_INITIALIZED;
}

#define ENDS(symbol, type, call) \
    API CUresult symbol(type what) { return call(REAL(symbol), what); }
ENDS(cuCtxDestroy, CUcontext, destroy)
ENDS(cuCtxDestroy_v2, CUcontext, destroy)
ENDS(cuGreenCtxDestroy, CUgreenCtx, destroy_green)
ENDS(cuDevicePrimaryCtxRelease, CUdevice, release)
ENDS(cuDevicePrimaryCtxRelease_v2, CUdevice, release)
ENDS(cuDevicePrimaryCtxReset, CUdevice, reset)
ENDS(cuDevicePrimaryCtxReset_v2, CUdevice, reset)
