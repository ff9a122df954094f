/*
 * The calls that put work on the GPU: each is counted, and in tier `shim` waits for the tenant's turn. Types are those
 * of cuda.h.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hook.h"
#include "pace.h"

typedef int CUresult;
typedef void *CUfunction, *CUstream, *CUgraphExec;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_NOT_INITIALIZED = 3 };

typedef struct {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    CUstream stream;
    void *attributes;
    unsigned attribute_count;
} CUlaunchConfig;

typedef struct {
    CUfunction function;
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    CUstream stream;
    void **parameters;
} CUDA_LAUNCH_PARAMS;

/* A cache line each, so that threads which launch do not wait for each other. */
#define COUNTERS 64
static struct {
    _Alignas(64) uint64_t launches;
} counters[COUNTERS];
static unsigned threads;
/* initial-exec: the library is there from the start, and looking the variable up would cost as much as counting */
static __thread unsigned own __attribute__((tls_model("initial-exec"))); /* of the counters, from 1 on */

static void count_launch(void)
{
    if (!own)
        own = 1 + __atomic_fetch_add(&threads, 1, __ATOMIC_RELAXED) % COUNTERS;
    __atomic_add_fetch(&counters[own - 1].launches, 1, __ATOMIC_RELAXED);
}

/* Launches of this process so far that CUDA took; of a graph one. For `%%vgpu` (jupyter_vgpu/inside.py). */
API uint64_t vgpu_launches(void)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < COUNTERS; i++)
        sum += __atomic_load_n(&counters[i].launches, __ATOMIC_RELAXED);
    return sum;
}

/* One call, into `stream`; per_thread as its name says. */
#define PACED(symbol, into, per_thread, call)             \
    {                                                     \
        __typeof__(&symbol) next = REAL(symbol);          \
        if (!next)                                        \
            return CUDA_ERROR_NOT_INITIALIZED;            \
        struct lane *lane = pace_enter(into, per_thread); \
        CUresult rc = next call;                          \
        pace_leave(lane);                                 \
        if (rc == CUDA_SUCCESS)                           \
            count_launch();                               \
        return rc;                                        \
    }

/* clang-format off */
#define LAUNCH_KERNEL(symbol, per_thread)                                                                       \
    API CUresult symbol(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, \
                        unsigned shared, CUstream stream, void **parameters, void **extra)                      \
    PACED(symbol, stream, per_thread, (f, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra))
LAUNCH_KERNEL(cuLaunchKernel, false)
LAUNCH_KERNEL(cuLaunchKernel_ptsz, true)

#define LAUNCH_COOPERATIVE(symbol, per_thread)                                                                  \
    API CUresult symbol(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, \
                        unsigned shared, CUstream stream, void **parameters)                                    \
    PACED(symbol, stream, per_thread, (f, gx, gy, gz, bx, by, bz, shared, stream, parameters))
LAUNCH_COOPERATIVE(cuLaunchCooperativeKernel, false)
LAUNCH_COOPERATIVE(cuLaunchCooperativeKernel_ptsz, true)

#define LAUNCH_EXTENDED(symbol, per_thread)                                                            \
    API CUresult symbol(const CUlaunchConfig *config, CUfunction f, void **parameters, void **extra)   \
    PACED(symbol, config ? config->stream : NULL, per_thread, (config, f, parameters, extra))
LAUNCH_EXTENDED(cuLaunchKernelEx, false)
LAUNCH_EXTENDED(cuLaunchKernelEx_ptsz, true)

#define LAUNCH_GRAPH(symbol, per_thread)                          \
    API CUresult symbol(CUgraphExec graph, CUstream stream)       \
    PACED(symbol, stream, per_thread, (graph, stream))
LAUNCH_GRAPH(cuGraphLaunch, false)
LAUNCH_GRAPH(cuGraphLaunch_ptsz, true)

API CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned count, unsigned flags)
PACED(cuLaunchCooperativeKernelMultiDevice, list && count ? list->stream : NULL, false, (list, count, flags))

API CUresult cuLaunch(CUfunction f)
PACED(cuLaunch, NULL, false, (f))
API CUresult cuLaunchGrid(CUfunction f, int width, int height)
PACED(cuLaunchGrid, NULL, false, (f, width, height))
API CUresult cuLaunchGridAsync(CUfunction f, int width, int height, CUstream stream)
PACED(cuLaunchGridAsync, stream, false, (f, width, height, stream))
/* clang-format on */

#define FORGOTTEN(symbol)                                                          \
    API CUresult symbol(CUstream stream)                                           \
    {                                                                              \
        __typeof__(&symbol) next = REAL(symbol);                                   \
        if (stream) /* else there is nothing to destroy, as the driver will say */ \
            pace_forget_stream(stream);                                            \
        return next ? next(stream) : CUDA_ERROR_NOT_INITIALIZED;                   \
    }
            FORGOTTEN(cuStreamDestroy) FORGOTTEN(cuStreamDestroy_v2)
