/*
 * A GPU load with known work: kernels of a fixed number of steps, so that what a tenant gets is counted in kernels,
 * independent of anybody's clock for the GPU. Driver API only; runs natively, in a slice, under MPS or any shim.
 *
 * load calibrate                       prints {"steps_per_us": ..., "blocks": ...}
 * load run STEPS SECONDS [plain|graph|cooperative] [MEMORY_MIB]
 *                                      prints "ready", waits for a line, then {"kernels", "seconds", "windows"}
 * load ping STEPS SECONDS PAUSE_MS     a short kernel now and then: {"p50_ms", "p99_ms", "max_ms", "count"}
 * load launch COUNT                    "ready"; each line is answered with {"each"}: ns to enqueue an empty kernel
 * load alloc COUNT                     the same: us to take 1 MiB and free it
 * load grab COUNT                      allocations of 1 to 128 MiB, kept until one is refused: {"allocations", "refused"}
 * load context                         {"context_ms"} of making the first context
 *
 * LOAD_BLOCKS: blocks of a kernel, where the GPU is made to look smaller than it is (MPS shows a part of it).
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHECK(call)                                                        \
    do {                                                                   \
        CUresult result_ = (call);                                         \
        if (result_ != CUDA_SUCCESS) {                                     \
            const char *name_ = NULL;                                      \
            cuGetErrorName(result_, &name_);                               \
            fprintf(stderr, "load: %s: %s\n", #call, name_ ? name_ : "?"); \
            exit(1);                                                       \
        }                                                                  \
    } while (0)

#define WINDOW_SECONDS 0.5
#define WINDOWS_MAX 256
#define GRAPH_KERNELS 20
#define BATCH_US 4000.0
#define ROUNDS 10

/* One thread counts the kernel as done, in host memory. `steps` dependent multiply-adds in every thread. */
static const char source[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry work(.param .u64 steps, .param .u64 done)\n{\n"
    ".reg .pred %p<3>;\n.reg .b32 %r<4>;\n.reg .f32 %f<2>;\n.reg .b64 %rd<4>;\n"
    "ld.param.u64 %rd1, [steps];\nld.param.u64 %rd2, [done];\nmov.f32 %f1, 0f3F800000;\n"
    "setp.eq.u64 %p1, %rd1, 0;\n@%p1 bra END;\n"
    "LOOP:\nfma.rn.f32 %f1, %f1, %f1, %f1;\nsub.u64 %rd1, %rd1, 1;\nsetp.ne.u64 %p1, %rd1, 0;\n@%p1 bra LOOP;\n"
    "END:\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, %ctaid.x;\nor.b32 %r1, %r1, %r2;\nsetp.ne.u32 %p1, %r1, 0;\n@%p1 ret;\n"
    "cvt.rzi.u32.f32 %r3, %f1;\nmin.u32 %r3, %r3, 0;\nadd.u32 %r3, %r3, 1;\n"
    "atom.global.sys.add.u32 %r3, [%rd2], %r3;\nret;\n}\n";

static CUfunction work;
static CUstream stream;
static volatile unsigned *done;
static CUdeviceptr done_device;
static unsigned blocks;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void open_gpu(void)
{
    CUdevice device;
    CUcontext context;
    CUmodule module;
    int count;

    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuDeviceGetAttribute(&count, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device));
    const char *given = getenv("LOAD_BLOCKS");
    blocks = given ? (unsigned)atoi(given) : 2 * (unsigned)count; /* full: nobody else fits beside it */
    CHECK(cuModuleLoadData(&module, source));
    CHECK(cuModuleGetFunction(&work, module, "work"));
    CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    void *host;
    CHECK(cuMemHostAlloc(&host, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
    CHECK(cuMemHostGetDevicePointer(&done_device, host, 0));
    done = host;
    *done = 0;
}

static void launch(unsigned long long steps, int cooperative)
{
    void *arguments[] = {&steps, &done_device};

    if (cooperative)
        CHECK(cuLaunchCooperativeKernel(work, blocks, 1, 1, 1024, 1, 1, 0, stream, arguments));
    else
        CHECK(cuLaunchKernel(work, blocks, 1, 1, 1024, 1, 1, 0, stream, arguments, NULL));
}

static double seconds_of(unsigned long long steps, int kernels)
{
    double began = now();

    for (int i = 0; i < kernels; i++)
        launch(steps, 0);
    CHECK(cuStreamSynchronize(stream));
    return now() - began;
}

static void calibrate(void)
{
    double best = 0;

    seconds_of(2000000, 20);
    for (int i = 0; i < 5; i++) { /* the difference of two sizes: launching cancels out */
        double rate = 20 * 1e6 / ((seconds_of(2000000, 20) - seconds_of(1000000, 20)) * 1e6);
        best = rate > best ? rate : best;
    }
    printf("{\"steps_per_us\": %.3f, \"blocks\": %u}\n", best, blocks);
}

static void wait_for_go(void)
{
    printf("ready\n");
    fflush(stdout);
    if (getchar() < 0)
        exit(0);
}

static struct {
    double at;
    unsigned done;
} windows[WINDOWS_MAX];
static int window_count;
static volatile int stop;

static void *watch_windows(void *argument)
{
    double next = now();
    (void)argument;

    while (!stop && window_count < WINDOWS_MAX) {
        windows[window_count].at = now();
        windows[window_count++].done = *done;
        next += WINDOW_SECONDS;
        double pause = next - now();
        if (pause > 0)
            usleep((useconds_t)(pause * 1e6));
    }
    return NULL;
}

static CUgraphExec make_graph(unsigned long long steps)
{
    CUgraph graph;
    CUgraphExec exec;

    CHECK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    for (int i = 0; i < GRAPH_KERNELS; i++)
        launch(steps, 0);
    CHECK(cuStreamEndCapture(stream, &graph));
    CHECK(cuGraphInstantiate(&exec, graph, 0));
    return exec;
}

static void run(unsigned long long steps, double seconds, const char *mode, unsigned long long memory_mib)
{
    int graph = strcmp(mode, "graph") == 0, cooperative = strcmp(mode, "cooperative") == 0;
    CUgraphExec exec = graph ? make_graph(steps) : NULL;
    CUdeviceptr memory;
    CUevent marks[2];
    pthread_t thread;

    if (memory_mib)
        CHECK(cuMemAlloc(&memory, memory_mib << 20));
    for (int i = 0; i < 2; i++)
        CHECK(cuEventCreate(&marks[i], CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC));
    double once = seconds_of(steps, 3) / 3;
    int batch = graph ? 1 : (int)(BATCH_US / (once * 1e6)) + 1;
    wait_for_go();
    *done = 0;
    double began = now();
    pthread_create(&thread, NULL, watch_windows, NULL);
    for (long turn = 0; now() - began < seconds; turn++) { /* two batches under way: never without work */
        for (int i = 0; i < batch; i++) {
            if (graph)
                CHECK(cuGraphLaunch(exec, stream));
            else
                launch(steps, cooperative);
        }
        CHECK(cuEventRecord(marks[turn & 1], stream));
        if (turn)
            CHECK(cuEventSynchronize(marks[(turn + 1) & 1]));
    }
    unsigned kernels = *done;
    double took = now() - began;
    stop = 1;
    pthread_join(thread, NULL);
    printf("{\"kernels\": %u, \"seconds\": %.6f, \"began\": %.6f, \"windows\": [", kernels, took, began);
    for (int i = 1; i < window_count; i++)
        printf("%s[%.6f, %u]", i > 1 ? ", " : "", windows[i].at - windows[i - 1].at,
               windows[i].done - windows[i - 1].done);
    printf("]}\n");
    fflush(stdout);
    CHECK(cuStreamSynchronize(stream));
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void ping(unsigned long long steps, double seconds, double pause_ms)
{
    static double took[100000];
    int count = 0;

    seconds_of(steps, 3);
    wait_for_go();
    for (double end = now() + seconds; now() < end && count < 100000;) {
        usleep((useconds_t)(pause_ms * 1e3));
        double began = now();
        launch(steps, 0);
        CHECK(cuStreamSynchronize(stream));
        took[count++] = (now() - began) * 1e3;
    }
    qsort(took, (size_t)count, sizeof *took, by_size);
    printf("{\"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f, \"count\": %d}\n", took[count / 2],
           took[(int)(count * 0.99)], took[count - 1], count);
}

static double launches(int count)
{
    CHECK(cuStreamSynchronize(stream));
    double began = now();
    for (int i = 0; i < count; i++)
        launch(0, 0);
    return (now() - began) / count * 1e9;
}

static double allocations(int count)
{
    CUdeviceptr memory;
    double began = now();

    for (int i = 0; i < count; i++) {
        CHECK(cuMemAlloc(&memory, 1 << 20));
        CHECK(cuMemFree(memory));
    }
    return (now() - began) / count * 1e6;
}

/* Best of some rounds for each line: others that meet this process on the machine only make it slower. */
static void answer_lines(double (*round)(int), int count)
{
    round(count);
    printf("ready\n");
    fflush(stdout);
    while (getchar() >= 0) {
        double best = 1e18;
        for (int i = 0; i < ROUNDS; i++) {
            double each = round(count);
            best = each < best ? each : best;
        }
        printf("{\"each\": %.3f}\n", best);
        fflush(stdout);
    }
}

/* Allocations of all sizes, as many as asked, kept until one is refused. */
static void grab(int count)
{
    static CUdeviceptr held[10000];
    unsigned number = (unsigned)getpid();
    int kept = 0, refused = 0;

    wait_for_go();
    for (int i = 0; i < count; i++) {
        number = number * 1103515245u + 12345u;
        CUresult result = cuMemAlloc(&held[kept], (size_t)1 << (20 + (number >> 16) % 8));
        if (result != CUDA_SUCCESS && result != CUDA_ERROR_OUT_OF_MEMORY)
            CHECK(result);
        kept += result == CUDA_SUCCESS;
        refused += result != CUDA_SUCCESS;
        if (result != CUDA_SUCCESS || kept == 10000)
            for (int half = kept / 2; kept > half;)
                CHECK(cuMemFree(held[--kept]));
    }
    while (kept)
        CHECK(cuMemFree(held[--kept]));
    printf("{\"allocations\": %d, \"refused\": %d}\n", count, refused);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    double began = now();

    open_gpu();
    double opened = (now() - began) * 1e3;
    if (strcmp(mode, "calibrate") == 0)
        calibrate();
    else if (strcmp(mode, "run") == 0 && argc > 3)
        run(strtoull(argv[2], NULL, 10), atof(argv[3]), argc > 4 ? argv[4] : "plain",
            argc > 5 ? strtoull(argv[5], NULL, 10) : 0);
    else if (strcmp(mode, "ping") == 0 && argc > 4)
        ping(strtoull(argv[2], NULL, 10), atof(argv[3]), atof(argv[4]));
    else if (strcmp(mode, "launch") == 0 && argc > 2)
        answer_lines(launches, atoi(argv[2]));
    else if (strcmp(mode, "alloc") == 0 && argc > 2)
        answer_lines(allocations, atoi(argv[2]));
    else if (strcmp(mode, "grab") == 0 && argc > 2)
        grab(atoi(argv[2]));
    else if (strcmp(mode, "context") == 0)
        printf("{\"context_ms\": %.3f}\n", opened);
    else
        return 2;
    return 0;
}
