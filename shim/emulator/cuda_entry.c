/* How applications find the rest: cuGetProcAddress, error names, and what is absent. */
#include <string.h>

#include "cuda_state.h"

/* SYMBOL(name asked for, first CUDA version with this form, exported symbol) */
#define SYMBOLS(SYMBOL)                                                                                      \
    SYMBOL("cuInit", 2000, cuInit)                                                                           \
    SYMBOL("cuDriverGetVersion", 2020, cuDriverGetVersion)                                                   \
    SYMBOL("cuDeviceGet", 2000, cuDeviceGet)                                                                 \
    SYMBOL("cuDeviceGetCount", 2000, cuDeviceGetCount)                                                       \
    SYMBOL("cuDeviceGetName", 2000, cuDeviceGetName)                                                         \
    SYMBOL("cuDeviceGetUuid", 9020, cuDeviceGetUuid)                                                         \
    SYMBOL("cuDeviceTotalMem", 3020, cuDeviceTotalMem_v2)                                                    \
    SYMBOL("cuDeviceGetAttribute", 2000, cuDeviceGetAttribute)                                               \
    SYMBOL("cuDeviceGetPCIBusId", 4010, cuDeviceGetPCIBusId)                                                 \
    SYMBOL("cuDeviceComputeCapability", 2000, cuDeviceComputeCapability)                                     \
    SYMBOL("cuDevicePrimaryCtxRetain", 7000, cuDevicePrimaryCtxRetain)                                       \
    SYMBOL("cuDevicePrimaryCtxRelease", 7000, cuDevicePrimaryCtxRelease_v2)                                  \
    SYMBOL("cuDevicePrimaryCtxReset", 7000, cuDevicePrimaryCtxReset_v2)                                      \
    SYMBOL("cuDevicePrimaryCtxSetFlags", 7000, cuDevicePrimaryCtxSetFlags_v2)                                \
    SYMBOL("cuDevicePrimaryCtxGetState", 7000, cuDevicePrimaryCtxGetState)                                   \
    SYMBOL("cuCtxCreate", 3020, cuCtxCreate_v2)                                                              \
    SYMBOL("cuCtxCreate", 12050, cuCtxCreate_v4)                                                             \
    SYMBOL("cuCtxDestroy", 4000, cuCtxDestroy_v2)                                                            \
    SYMBOL("cuCtxPushCurrent", 4000, cuCtxPushCurrent_v2)                                                    \
    SYMBOL("cuCtxPopCurrent", 4000, cuCtxPopCurrent_v2)                                                      \
    SYMBOL("cuCtxSetCurrent", 4000, cuCtxSetCurrent)                                                         \
    SYMBOL("cuCtxGetCurrent", 4000, cuCtxGetCurrent)                                                         \
    SYMBOL("cuCtxGetDevice", 2000, cuCtxGetDevice)                                                           \
    SYMBOL("cuCtxGetDevice", 13000, cuCtxGetDevice_v2)                                                       \
    SYMBOL("cuCtxSynchronize", 2000, cuCtxSynchronize)                                                       \
    SYMBOL("cuCtxSynchronize", 13000, cuCtxSynchronize_v2)                                                   \
    SYMBOL("cuCtxGetApiVersion", 3020, cuCtxGetApiVersion)                                                   \
    SYMBOL("cuCtxGetFlags", 7000, cuCtxGetFlags)                                                             \
    SYMBOL("cuCtxGetStreamPriorityRange", 5050, cuCtxGetStreamPriorityRange)                                 \
    SYMBOL("cuMemGetInfo", 3020, cuMemGetInfo_v2)                                                            \
    SYMBOL("cuMemAlloc", 3020, cuMemAlloc_v2)                                                                \
    SYMBOL("cuMemFree", 3020, cuMemFree_v2)                                                                  \
    SYMBOL("cuMemAllocPitch", 3020, cuMemAllocPitch_v2)                                                      \
    SYMBOL("cuMemAllocAsync", 11020, cuMemAllocAsync)                                                        \
    SYMBOL("cuMemFreeAsync", 11020, cuMemFreeAsync)                                                          \
    SYMBOL("cuMemAllocManaged", 6000, cuMemAllocManaged)                                                     \
    SYMBOL("cuMemAllocHost", 3020, cuMemAllocHost_v2)                                                        \
    SYMBOL("cuMemHostAlloc", 2020, cuMemHostAlloc)                                                           \
    SYMBOL("cuMemFreeHost", 2000, cuMemFreeHost)                                                             \
    SYMBOL("cuMemHostGetDevicePointer", 3020, cuMemHostGetDevicePointer_v2)                                  \
    SYMBOL("cuMemGetAddressRange", 3020, cuMemGetAddressRange_v2)                                            \
    SYMBOL("cuPointerGetAttribute", 4000, cuPointerGetAttribute)                                             \
    SYMBOL("cuPointerGetAttributes", 7000, cuPointerGetAttributes)                                           \
    SYMBOL("cuMemcpy", 4000, cuMemcpy)                                                                       \
    SYMBOL("cuMemcpyAsync", 4000, cuMemcpyAsync)                                                             \
    SYMBOL("cuMemcpyHtoD", 3020, cuMemcpyHtoD_v2)                                                            \
    SYMBOL("cuMemcpyHtoDAsync", 3020, cuMemcpyHtoDAsync_v2)                                                  \
    SYMBOL("cuMemcpyDtoH", 3020, cuMemcpyDtoH_v2)                                                            \
    SYMBOL("cuMemcpyDtoHAsync", 3020, cuMemcpyDtoHAsync_v2)                                                  \
    SYMBOL("cuMemcpyDtoD", 3020, cuMemcpyDtoD_v2)                                                            \
    SYMBOL("cuMemcpyDtoDAsync", 3020, cuMemcpyDtoDAsync_v2)                                                  \
    SYMBOL("cuMemsetD8", 3020, cuMemsetD8_v2)                                                                \
    SYMBOL("cuMemsetD8Async", 3020, cuMemsetD8Async)                                                         \
    SYMBOL("cuMemsetD16", 3020, cuMemsetD16_v2)                                                              \
    SYMBOL("cuMemsetD16Async", 3020, cuMemsetD16Async)                                                       \
    SYMBOL("cuMemsetD32", 3020, cuMemsetD32_v2)                                                              \
    SYMBOL("cuMemsetD32Async", 3020, cuMemsetD32Async)                                                       \
    SYMBOL("cuStreamCreate", 2000, cuStreamCreate)                                                           \
    SYMBOL("cuStreamCreateWithPriority", 5050, cuStreamCreateWithPriority)                                   \
    SYMBOL("cuStreamDestroy", 4000, cuStreamDestroy_v2)                                                      \
    SYMBOL("cuStreamSynchronize", 2000, cuStreamSynchronize)                                                 \
    SYMBOL("cuStreamQuery", 2000, cuStreamQuery)                                                             \
    SYMBOL("cuStreamWaitEvent", 3020, cuStreamWaitEvent)                                                     \
    SYMBOL("cuStreamIsCapturing", 10000, cuStreamIsCapturing)                                                \
    SYMBOL("cuStreamGetFlags", 5050, cuStreamGetFlags)                                                       \
    SYMBOL("cuStreamGetPriority", 5050, cuStreamGetPriority)                                                 \
    SYMBOL("cuStreamGetCtx", 9020, cuStreamGetCtx)                                                           \
    SYMBOL("cuLaunchHostFunc", 10000, cuLaunchHostFunc)                                                      \
    SYMBOL("cuEventCreate", 2000, cuEventCreate)                                                             \
    SYMBOL("cuEventRecord", 2000, cuEventRecord)                                                             \
    SYMBOL("cuEventRecordWithFlags", 11010, cuEventRecordWithFlags)                                          \
    SYMBOL("cuEventQuery", 2000, cuEventQuery)                                                               \
    SYMBOL("cuEventSynchronize", 2000, cuEventSynchronize)                                                   \
    SYMBOL("cuEventElapsedTime", 2000, cuEventElapsedTime)                                                   \
    SYMBOL("cuEventElapsedTime", 12080, cuEventElapsedTime_v2)                                               \
    SYMBOL("cuEventDestroy", 4000, cuEventDestroy_v2)                                                        \
    SYMBOL("cuModuleLoadData", 2000, cuModuleLoadData)                                                       \
    SYMBOL("cuModuleLoadDataEx", 2010, cuModuleLoadDataEx)                                                   \
    SYMBOL("cuModuleUnload", 2000, cuModuleUnload)                                                           \
    SYMBOL("cuModuleGetFunction", 2000, cuModuleGetFunction)                                                 \
    SYMBOL("cuModuleGetGlobal", 3020, cuModuleGetGlobal_v2)                                                  \
    SYMBOL("cuLibraryLoadData", 12000, cuLibraryLoadData)                                                    \
    SYMBOL("cuLibraryUnload", 12000, cuLibraryUnload)                                                        \
    SYMBOL("cuLibraryGetKernel", 12000, cuLibraryGetKernel)                                                  \
    SYMBOL("cuLibraryGetModule", 12000, cuLibraryGetModule)                                                  \
    SYMBOL("cuLibraryGetGlobal", 12000, cuLibraryGetGlobal)                                                  \
    SYMBOL("cuKernelGetFunction", 12000, cuKernelGetFunction)                                                \
    SYMBOL("cuKernelGetAttribute", 12000, cuKernelGetAttribute)                                              \
    SYMBOL("cuKernelGetParamInfo", 12040, cuKernelGetParamInfo)                                              \
    SYMBOL("cuFuncGetParamInfo", 12040, cuFuncGetParamInfo)                                                  \
    SYMBOL("cuFuncGetAttribute", 2020, cuFuncGetAttribute)                                                   \
    SYMBOL("cuFuncSetAttribute", 9000, cuFuncSetAttribute)                                                   \
    SYMBOL("cuFuncSetCacheConfig", 3000, cuFuncSetCacheConfig)                                               \
    SYMBOL("cuOccupancyMaxActiveBlocksPerMultiprocessor", 6050, cuOccupancyMaxActiveBlocksPerMultiprocessor) \
    SYMBOL("cuLaunchKernel", 4000, cuLaunchKernel)                                                           \
    SYMBOL("cuLaunchKernelEx", 11060, cuLaunchKernelEx)                                                      \
    SYMBOL("cuGetErrorName", 6000, cuGetErrorName)                                                           \
    SYMBOL("cuGetErrorString", 6000, cuGetErrorString)                                                       \
    SYMBOL("cuGetProcAddress", 11030, cuGetProcAddress)                                                      \
    SYMBOL("cuGetProcAddress", 12000, cuGetProcAddress_v2)                                                   \
    SYMBOL("cuGetExportTable", 3000, cuGetExportTable)

/* Only their addresses are taken here, so the true types do not matter. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"
#define SYMBOL(name, since, symbol) extern API CUresult symbol();
SYMBOLS(SYMBOL)
#undef SYMBOL
#pragma GCC diagnostic pop

static const struct {
    const char *name;
    int since;
    CUresult (*function)();
} symbols[] = {
#define SYMBOL(name, since, symbol) {name, since, symbol},
    SYMBOLS(SYMBOL)
#undef SYMBOL
};

CUresult cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
    int found = PROC_SYMBOL_NOT_FOUND, best = -1;

    (void)flags; /* one queue a context: per-thread and legacy default streams are the same here */
    if (!name || !function)
        return CUDA_ERROR_INVALID_VALUE;
    *function = NULL;
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        if (strcmp(symbols[i].name, name) != 0)
            continue;
        if (symbols[i].since > version) {
            found = found == PROC_FOUND ? found : PROC_VERSION_NOT_SUFFICIENT;
        } else if (symbols[i].since > best) {
            best = symbols[i].since;
            found = PROC_FOUND;
            memcpy(function, &symbols[i].function, sizeof *function);
        }
    }
    if (status)
        *status = found;
    return found == PROC_FOUND ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuGetProcAddress(const char *name, void **function, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

CUresult cuGetExportTable(const void **table, const CUuuid *id)
{
    (void)id;
    if (table)
        *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}

static const struct {
    CUresult code;
    const char *name, *text;
} results[] = {
#define CODE(number, name, text) {number, #name, text},
    CUDA_RESULTS(CODE)
#undef CODE
};
CUresult cuGetErrorName(CUresult code, const char **name)
{
    for (size_t i = 0; i < sizeof results / sizeof *results; i++)
        if (results[i].code == code) {
            *name = results[i].name;
            return CUDA_SUCCESS;
        }
    *name = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult code, const char **text)
{
    for (size_t i = 0; i < sizeof results / sizeof *results; i++)
        if (results[i].code == code) {
            *text = results[i].text;
            return CUDA_SUCCESS;
        }
    *text = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}
