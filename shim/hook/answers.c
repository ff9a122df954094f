/* What the shim says instead of the driver. The CUDA and NVML types and numbers are those of cuda.h and nvml.h. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "hook.h"

typedef int CUresult, CUdevice, nvmlReturn_t;
typedef uint64_t CUdeviceptr;
typedef void *CUstream, *nvmlDevice_t;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_OUT_OF_MEMORY = 2, CUDA_ERROR_NOT_INITIALIZED = 3 };
enum { NVML_SUCCESS = 0, NVML_ERROR_UNINITIALIZED = 1 };

/* The driver's own function, in the type of the wrapper that calls it. */
#define REAL(symbol) ((__typeof__(&symbol))real(ROW_##symbol))

/* --- the slice instead of the card --- */

static uint64_t left(const struct slice *slice) { return slice->used < slice->quota ? slice->quota - slice->used : 0; }

API CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    __typeof__(&cuMemGetInfo_v2) next = REAL(cuMemGetInfo_v2);
    CUresult rc = next ? next(free_bytes, total) : CUDA_ERROR_NOT_INITIALIZED;
    struct slice slice;

    if (rc != CUDA_SUCCESS || !slice_read(&slice))
        return rc;
    /* an overcommitted card may have less left than the tenant's quota */
    if (free_bytes && left(&slice) < *free_bytes)
        *free_bytes = left(&slice);
    if (total && slice.quota < *total)
        *total = slice.quota;
    return rc;
}

API CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    __typeof__(&cuDeviceTotalMem_v2) next = REAL(cuDeviceTotalMem_v2);
    CUresult rc = next ? next(bytes, device) : CUDA_ERROR_NOT_INITIALIZED;
    struct slice slice;

    if (rc == CUDA_SUCCESS && bytes && slice_read(&slice) && slice.quota < *bytes)
        *bytes = slice.quota;
    return rc;
}

struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

/* NVML shows every card of the node: only the slice's own has the slice's numbers. */
static bool is_slice_gpu(nvmlDevice_t device, struct slice *slice)
{
    char uuid[96] = "";
    nvmlReturn_t (*get_uuid)(nvmlDevice_t, char *, unsigned) = (nvmlReturn_t (*)(
        nvmlDevice_t, char *, unsigned))real_symbol("libnvidia-ml.so.1", "nvmlDeviceGetUUID");

    return slice_read(slice) && get_uuid && get_uuid(device, uuid, sizeof uuid) == NVML_SUCCESS &&
           strcmp(uuid, slice->gpu_uuid) == 0;
}

API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, struct nvml_memory *memory)
{
    __typeof__(&nvmlDeviceGetMemoryInfo) next = REAL(nvmlDeviceGetMemoryInfo);
    nvmlReturn_t rc = next ? next(device, memory) : NVML_ERROR_UNINITIALIZED;
    struct slice slice;

    if (rc == NVML_SUCCESS && is_slice_gpu(device, &slice) && slice.quota < memory->total)
        *memory = (struct nvml_memory){.total = slice.quota, .free = left(&slice), .used = slice.used};
    return rc;
}

API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, struct nvml_memory_v2 *memory)
{
    __typeof__(&nvmlDeviceGetMemoryInfo_v2) next = REAL(nvmlDeviceGetMemoryInfo_v2);
    nvmlReturn_t rc = next ? next(device, memory) : NVML_ERROR_UNINITIALIZED;
    struct slice slice;

    if (rc == NVML_SUCCESS && is_slice_gpu(device, &slice) && slice.quota < memory->total)
        *memory = (struct nvml_memory_v2){
            .version = memory->version, .total = slice.quota, .free = left(&slice), .used = slice.used};
    return rc;
}

/* --- tier `shim`: reserve in the tenant's ledger, then allocate --- */

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
