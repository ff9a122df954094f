/*
 * Tier `shim`, where no guard counts: reserve in the tenant's ledger, then allocate. Types and numbers are those of
 * cuda.h.
 */
#include <stddef.h>
#include <stdint.h>

#include "hook.h"

typedef int CUresult;
typedef uint64_t CUdeviceptr;
typedef void *CUstream;
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

/* Calls `next` unless the tenant's ledger has no room for `bytes`; what the driver refuses is given back. */
#define RESERVED(next, bytes, call)                        \
    (!(next)                  ? CUDA_ERROR_NOT_INITIALIZED \
     : !ledger_counts()       ? (call)                     \
     : !ledger_reserve(bytes) ? CUDA_ERROR_OUT_OF_MEMORY   \
                              : settled((call), (bytes)))

static CUresult released(CUresult rc, uint64_t bytes)
{
    if (rc == CUDA_SUCCESS && bytes)
        ledger_release(bytes);
    return rc;
}
#define RELEASED(next, address, call)                        \
    uint64_t bytes = ledger_counts() ? size_at(address) : 0; \
    return next ? released((call), bytes) : CUDA_ERROR_NOT_INITIALIZED

API CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t size)
{
    __typeof__(&cuMemAlloc_v2) next = REAL(cuMemAlloc_v2);
    return RESERVED(next, size, next(out, size));
}
API CUresult cuMemAllocManaged(CUdeviceptr *out, size_t size, unsigned flags)
{
    __typeof__(&cuMemAllocManaged) next = REAL(cuMemAllocManaged);
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

    if (rc != CUDA_SUCCESS || !ledger_counts() || ledger_reserve(size_at(*out)))
        return rc;
    __typeof__(CUresult (*)(CUdeviceptr)) undo = (CUresult (*)(CUdeviceptr))real_symbol("libcuda.so.1", "cuMemFree_v2");
    undo(*out);
    return CUDA_ERROR_OUT_OF_MEMORY;
}
API CUresult cuMemFree_v2(CUdeviceptr address)
{
    __typeof__(&cuMemFree_v2) next = REAL(cuMemFree_v2);
    RELEASED(next, address, next(address));
}
API CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream)
{
    __typeof__(&cuMemFreeAsync) next = REAL(cuMemFreeAsync);
    RELEASED(next, address, next(address, stream));
}
API CUresult cuMemFreeAsync_ptsz(CUdeviceptr address, CUstream stream)
{
    __typeof__(&cuMemFreeAsync_ptsz) next = REAL(cuMemFreeAsync_ptsz);
    RELEASED(next, address, next(address, stream));
}
