/* What the shim says instead of the driver about the card's memory. Types and numbers are those of cuda.h. */
#include <stddef.h>
#include <stdint.h>

#include "hook.h"

typedef int CUresult, CUdevice;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_NOT_INITIALIZED = 3 };

/* The driver's own function, in the type of the wrapper that calls it. */
#define REAL(symbol) ((__typeof__(&symbol))real(ROW_##symbol))

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* An overcommitted card may have less left than the tenant's quota. */
API CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    __typeof__(&cuMemGetInfo_v2) next = REAL(cuMemGetInfo_v2);
    CUresult rc = next ? next(free_bytes, total) : CUDA_ERROR_NOT_INITIALIZED;
    struct slice slice;

    if (rc != CUDA_SUCCESS || !slice_read(&slice))
        return rc;
    if (free_bytes)
        *free_bytes = smaller(slice.free, *free_bytes);
    if (total)
        *total = smaller(slice.quota, *total);
    return rc;
}

API CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    __typeof__(&cuDeviceTotalMem_v2) next = REAL(cuDeviceTotalMem_v2);
    CUresult rc = next ? next(bytes, device) : CUDA_ERROR_NOT_INITIALIZED;
    struct slice slice;

    if (rc == CUDA_SUCCESS && bytes && slice_read(&slice))
        *bytes = smaller(slice.quota, *bytes);
    return rc;
}

/* The forms of CUDA 2, with 32-bit sizes. */
API CUresult cuMemGetInfo(unsigned *free_bytes, unsigned *total)
{
    __typeof__(&cuMemGetInfo) next = REAL(cuMemGetInfo);
    CUresult rc = next ? next(free_bytes, total) : CUDA_ERROR_NOT_INITIALIZED;
    struct slice slice;

    if (rc != CUDA_SUCCESS || !slice_read(&slice))
        return rc;
    if (free_bytes)
        *free_bytes = (unsigned)smaller(slice.free, *free_bytes);
    if (total)
        *total = (unsigned)smaller(slice.quota, *total);
    return rc;
}

API CUresult cuDeviceTotalMem(unsigned *bytes, CUdevice device)
{
    __typeof__(&cuDeviceTotalMem) next = REAL(cuDeviceTotalMem);
    CUresult rc = next ? next(bytes, device) : CUDA_ERROR_NOT_INITIALIZED;
    struct slice slice;

    if (rc == CUDA_SUCCESS && bytes && slice_read(&slice))
        *bytes = (unsigned)smaller(slice.quota, *bytes);
    return rc;
}
