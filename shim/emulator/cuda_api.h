/* The CUDA driver API's types and numbers that the emulated GPU speaks. Facts; source: CUDA 13 cuda.h. */
#ifndef VGPU_EMULATOR_CUDA_API_H
#define VGPU_EMULATOR_CUDA_API_H

#include <stddef.h>
#include <stdint.h>

#define CUDA_API_VERSION 13050

typedef int CUresult, CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct context *CUcontext;
typedef struct stream *CUstream;
typedef struct event *CUevent;
typedef struct module *CUmodule, *CUlibrary;
typedef struct function *CUfunction, *CUkernel;
typedef struct {
    unsigned char bytes[16];
} CUuuid;

/* CODE(number, name, text): what cuGetErrorName and cuGetErrorString say. */
#define CUDA_RESULTS(CODE)                                                                              \
    CODE(0, CUDA_SUCCESS, "no error")                                                                   \
    CODE(1, CUDA_ERROR_INVALID_VALUE, "invalid argument")                                               \
    CODE(2, CUDA_ERROR_OUT_OF_MEMORY, "out of memory")                                                  \
    CODE(3, CUDA_ERROR_NOT_INITIALIZED, "initialization error")                                         \
    CODE(100, CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected")                               \
    CODE(101, CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal")                                      \
    CODE(200, CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid")                               \
    CODE(201, CUDA_ERROR_INVALID_CONTEXT, "invalid device context")                                     \
    CODE(209, CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device") \
    CODE(218, CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed")                                   \
    CODE(301, CUDA_ERROR_FILE_NOT_FOUND, "file not found")                                              \
    CODE(304, CUDA_ERROR_OPERATING_SYSTEM, "OS call failed or operation not supported on this OS")      \
    CODE(400, CUDA_ERROR_INVALID_HANDLE, "invalid resource handle")                                     \
    CODE(500, CUDA_ERROR_NOT_FOUND, "named symbol not found")                                           \
    CODE(600, CUDA_ERROR_NOT_READY, "device not ready")                                                 \
    CODE(700, CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")                   \
    CODE(701, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch")            \
    CODE(716, CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address")                                      \
    CODE(719, CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure")                                   \
    CODE(801, CUDA_ERROR_NOT_SUPPORTED, "operation not supported")                                      \
    CODE(999, CUDA_ERROR_UNKNOWN, "unknown error")

enum cuda_result {
#define CODE(number, name, text) name = number,
    CUDA_RESULTS(CODE)
#undef CODE
};

enum { /* CUdevice_attribute, those with an answer other than 0 */
       ATTRIBUTE_MAX_THREADS_PER_BLOCK = 1,
       ATTRIBUTE_MAX_BLOCK_DIM_X,
       ATTRIBUTE_MAX_BLOCK_DIM_Y,
       ATTRIBUTE_MAX_BLOCK_DIM_Z,
       ATTRIBUTE_MAX_GRID_DIM_X,
       ATTRIBUTE_MAX_GRID_DIM_Y,
       ATTRIBUTE_MAX_GRID_DIM_Z,
       ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK,
       ATTRIBUTE_TOTAL_CONSTANT_MEMORY,
       ATTRIBUTE_WARP_SIZE,
       ATTRIBUTE_MAX_PITCH,
       ATTRIBUTE_MAX_REGISTERS_PER_BLOCK,
       ATTRIBUTE_CLOCK_RATE,
       ATTRIBUTE_TEXTURE_ALIGNMENT,
       ATTRIBUTE_GPU_OVERLAP,
       ATTRIBUTE_MULTIPROCESSOR_COUNT,
       ATTRIBUTE_CAN_MAP_HOST_MEMORY = 19,
       ATTRIBUTE_CONCURRENT_KERNELS = 31,
       ATTRIBUTE_MEMORY_CLOCK_RATE = 36,
       ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH,
       ATTRIBUTE_L2_CACHE_SIZE = 38,
       ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
       ATTRIBUTE_ASYNC_ENGINE_COUNT,
       ATTRIBUTE_UNIFIED_ADDRESSING,
       ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
       ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
       ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,
       ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR,
       ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
       ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR = 106,
};

enum { /* CUpointer_attribute */
       POINTER_CONTEXT = 1,
       POINTER_MEMORY_TYPE = 2,
       POINTER_DEVICE_POINTER = 3,
       POINTER_HOST_POINTER = 4,
       POINTER_IS_MANAGED = 8,
       POINTER_DEVICE_ORDINAL = 9,
       POINTER_RANGE_START = 11,
       POINTER_RANGE_SIZE = 12,
};
enum { MEMORY_TYPE_HOST = 1, MEMORY_TYPE_DEVICE = 2 };

enum { /* CUfunction_attribute */
       FUNCTION_MAX_THREADS_PER_BLOCK = 0,
       FUNCTION_SHARED_SIZE = 1,
       FUNCTION_CONST_SIZE = 2,
       FUNCTION_LOCAL_SIZE = 3,
       FUNCTION_NUM_REGS = 4,
       FUNCTION_PTX_VERSION = 5,
       FUNCTION_BINARY_VERSION = 6,
       FUNCTION_MAX_DYNAMIC_SHARED_SIZE = 8,
};

typedef struct {
    unsigned int gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    CUstream hStream;
    void *attrs;
    unsigned int numAttrs;
} CUlaunchConfig;
_Static_assert(sizeof(CUlaunchConfig) == 56, "CUlaunchConfig layout");

enum { JIT_INFO_LOG_BUFFER = 3, JIT_INFO_LOG_BUFFER_SIZE = 4, JIT_ERROR_LOG_BUFFER = 5, JIT_ERROR_LOG_BUFFER_SIZE = 6 };
enum { PROC_FOUND = 0, PROC_SYMBOL_NOT_FOUND = 1, PROC_VERSION_NOT_SUFFICIENT = 2 };

#define CU_STREAM_LEGACY ((CUstream)1)
#define CU_STREAM_PER_THREAD ((CUstream)2)

#endif
