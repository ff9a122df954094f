/*
 * The calls that take and give back memory. In tier `guard` the guard counts them at the driver, but for managed
 * memory, of which the driver's calls tell nothing; in tier `shim` each reserves in the tenant's ledger first. In both,
 * what was refused is told to the daemon by its CUDA name. Types and numbers are those of cuda.h.
 */
#include <stddef.h>
#include <stdint.h>

#include "hook.h"

typedef int CUresult, CUdevice;
typedef uint64_t CUdeviceptr;
typedef void *CUstream, *CUcontext;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_OUT_OF_MEMORY = 2, CUDA_ERROR_NOT_INITIALIZED = 3 };

/* The driver's own function, in the type of the wrapper that calls it. */
#define REAL(symbol) ((__typeof__(&symbol))real(ROW_##symbol))

static CUresult settled(CUresult rc, uint64_t bytes)
{
    if (rc != CUDA_SUCCESS)
        ledger_release(bytes);
    return rc;
}

/* How many bytes are behind an address that is about to be freed. */
static uint64_t size_at(CUdeviceptr address)
{
    CUresult (*range)(CUdeviceptr *, size_t *, CUdeviceptr) = (CUresult (*)(
        CUdeviceptr *, size_t *, CUdeviceptr))real_symbol("libcuda.so.1", "cuMemGetAddressRange_v2");
    size_t size = 0;

    return address && range && range(NULL, &size, address) == CUDA_SUCCESS ? size : 0;
}

/* The error stays CUDA's own; the daemon hears who was refused what. */
static CUresult explained(CUresult rc, const char *call, uint64_t bytes)
{
    if (rc == CUDA_ERROR_OUT_OF_MEMORY && slice_directory())
        report_refused(call, bytes);
    return rc;
}

/* Calls `next` unless the tenant's ledger has no room for `bytes`; what the driver refuses is given back. */
#define RESERVED(next, bytes, call)                                 \
    explained(!(next)                  ? CUDA_ERROR_NOT_INITIALIZED \
              : !ledger_counts()       ? (call)                     \
              : !ledger_reserve(bytes) ? CUDA_ERROR_OUT_OF_MEMORY   \
                                       : settled((call), (bytes)),  \
              __func__, bytes)

/* What is about to be freed, on either account. */
struct leaving {
    uint64_t bytes, managed;
};

static struct leaving leaving(CUdeviceptr address)
{
    if (ledger_counts())
        return (struct leaving){.bytes = size_at(address)};
    return (struct leaving){.managed = managed_take(address)};
}

static CUresult left(CUresult rc, CUdeviceptr address, struct leaving what)
{
    if (rc == CUDA_SUCCESS && what.bytes)
        ledger_release(what.bytes);
    if (rc == CUDA_SUCCESS && what.managed)
        managed_release(what.managed);
    else if (what.managed)
        managed_keep(address, what.managed);
    return rc;
}
#define FREED(next, address, call)          \
    struct leaving what = leaving(address); \
    return left((next) ? (call) : CUDA_ERROR_NOT_INITIALIZED, address, what)

API CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t size)
{
    __typeof__(&cuMemAlloc_v2) next = REAL(cuMemAlloc_v2);
    return RESERVED(next, size, next(out, size));
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

    if (next && out && size && slice_directory() && !ledger_counts())
        return explained(alloc_managed(next, out, size, flags), __func__, size);
    return RESERVED(next, size, next(out, size, flags));
}
API CUresult cuMemAllocAsync(CUdeviceptr *out, size_t size, CUstream stream)
{
    __typeof__(&cuMemAllocAsync) next = REAL(cuMemAllocAsync);
    return RESERVED(next, size, next(out, size, stream));
}
API CUresult cuMemAllocAsync_ptsz(CUdeviceptr *out, size_t size, CUstream stream)
{
    __typeof__(&cuMemAllocAsync_ptsz) next = REAL(cuMemAllocAsync_ptsz);
    return RESERVED(next, size, next(out, size, stream));
}
/* The pitch is the driver's to choose: what it made is reserved after, and given back if that is too much. */
API CUresult cuMemAllocPitch_v2(CUdeviceptr *out, size_t *pitch, size_t width, size_t height, unsigned element)
{
    __typeof__(&cuMemAllocPitch_v2) next = REAL(cuMemAllocPitch_v2);
    CUresult rc = next ? next(out, pitch, width, height, element) : CUDA_ERROR_NOT_INITIALIZED;

    if (rc == CUDA_SUCCESS && ledger_counts() && !ledger_reserve(size_at(*out))) {
        CUresult (*undo)(CUdeviceptr) = (CUresult (*)(CUdeviceptr))real(ROW_cuMemFree_v2);
        undo(*out);
        rc = CUDA_ERROR_OUT_OF_MEMORY;
    }
    return explained(rc, __func__, (uint64_t)width * height);
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

/* A context takes its managed memory with it. */
#define SWEPT(symbol, type)                                           \
    API CUresult symbol(type what)                                    \
    {                                                                 \
        __typeof__(&symbol) next = REAL(symbol);                      \
        CUresult rc = next ? next(what) : CUDA_ERROR_NOT_INITIALIZED; \
        if (rc == CUDA_SUCCESS)                                       \
            managed_sweep();                                          \
        return rc;                                                    \
    }
SWEPT(cuCtxDestroy_v2, CUcontext)
SWEPT(cuDevicePrimaryCtxRelease_v2, CUdevice)
SWEPT(cuDevicePrimaryCtxReset_v2, CUdevice)
