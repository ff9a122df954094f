/* What the shim says instead of the driver about the card's memory. Types and numbers are those of cuda.h. */
#include <stddef.h>
#include <stdint.h>

#include "hook.h"

typedef int CUresult, CUdevice;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_NOT_INITIALIZED = 3 };

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/*
 * Each in two forms: CUDA 2 had 32-bit sizes. An overcommitted card may have less left than the tenant's quota, so the
 * smaller number is the answer.
 */
#define MEMORY_INFO(symbol, size_type)                                             \
    API CUresult symbol(size_type *free_bytes, size_type *total)                   \
    {                                                                              \
        __typeof__(&symbol) next = REAL(symbol);                                   \
        CUresult rc = next ? next(free_bytes, total) : CUDA_ERROR_NOT_INITIALIZED; \
        struct slice slice;                                                        \
                                                                                   \
        if (rc != CUDA_SUCCESS || !slice_read(&slice))                             \
            return rc;                                                             \
        if (free_bytes)                                                            \
            *free_bytes = (size_type)smaller(slice.free, *free_bytes);             \
        if (total)                                                                 \
            *total = (size_type)smaller(slice.quota, *total);                      \
        return rc;                                                                 \
    }
MEMORY_INFO(cuMemGetInfo, unsigned)
MEMORY_INFO(cuMemGetInfo_v2, size_t)

#define TOTAL_MEMORY(symbol, size_type)                                        \
    API CUresult symbol(size_type *bytes, CUdevice device)                     \
    {                                                                          \
        __typeof__(&symbol) next = REAL(symbol);                               \
        CUresult rc = next ? next(bytes, device) : CUDA_ERROR_NOT_INITIALIZED; \
        struct slice slice;                                                    \
                                                                               \
        if (rc == CUDA_SUCCESS && bytes && slice_read(&slice))                 \
            *bytes = (size_type)smaller(slice.quota, *bytes);                  \
        return rc;                                                             \
    }
TOTAL_MEMORY(cuDeviceTotalMem, unsigned)
TOTAL_MEMORY(cuDeviceTotalMem_v2, size_t)
