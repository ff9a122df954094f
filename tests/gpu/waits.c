/*
 * Work that waits, and work that comes after a rest. Each case starts after the process has been idle for long enough
 * to be taken off the GPU, and prints {"case": ..., "seconds": ...} when its results are right.
 *
 * waits STEPS    STEPS: loop rounds of a kernel of about half a second
 */
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
            fprintf(stderr, "waits: %s: error %d\n", #call, (int)result_); \
            exit(1);                                                       \
        }                                                                  \
    } while (0)

#define REST_US 300000
#define BYTES ((size_t)256 << 20)

/* Adds 1 to the counter when it has gone its rounds; one thread. */
static const char source[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry add(.param .u64 rounds, .param .u64 counter)\n{\n"
    ".reg .pred %p<2>;\n.reg .b32 %r<4>;\n.reg .f32 %f<2>;\n.reg .b64 %rd<3>;\n"
    "ld.param.u64 %rd1, [rounds];\nld.param.u64 %rd2, [counter];\nmov.f32 %f1, 0f3F800000;\n"
    "LOOP:\nfma.rn.f32 %f1, %f1, %f1, %f1;\nsub.u64 %rd1, %rd1, 1;\nsetp.ne.u64 %p1, %rd1, 0;\n@%p1 bra LOOP;\n"
    "cvt.rzi.u32.f32 %r3, %f1;\nmin.u32 %r3, %r3, 0;\nadd.u32 %r3, %r3, 1;\n"
    "atom.global.sys.add.u32 %r3, [%rd2], %r3;\nret;\n}\n";

static CUfunction add;
static CUstream first, second;
static volatile unsigned *words; /* 0: the kernels' counter; 1: a value that a stream waits for */
static CUdeviceptr counter;
static unsigned long long half_a_second;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void launch(CUstream stream, unsigned long long rounds)
{
    void *arguments[] = {&rounds, &counter};
    CHECK(cuLaunchKernel(add, 1, 1, 1, 1, 1, 1, 0, stream, arguments, NULL));
}

static void expect(unsigned count)
{
    if (words[0] != count) {
        fprintf(stderr, "waits: %u kernels are done, not %u\n", words[0], count);
        exit(1);
    }
}

static void *release(void *argument)
{
    (void)argument;
    usleep(REST_US);
    words[1] = 1;
    return NULL;
}

static void doze(void *argument)
{
    (void)argument;
    usleep(REST_US);
}

static void short_kernel(void)
{
    launch(first, 1);
    CHECK(cuStreamSynchronize(first));
    expect(1);
}

/* The GPU has fetched it long before it ends. */
static void long_kernel(void)
{
    launch(first, half_a_second);
    CHECK(cuStreamSynchronize(first));
    expect(1);
}

/* Nothing tells the GPU's driver that the value has come. */
static void value(void)
{
    pthread_t thread;
    words[1] = 0;
    CHECK(cuStreamWaitValue32(first, counter + sizeof(unsigned), 1, CU_STREAM_WAIT_VALUE_EQ));
    launch(first, 1);
    pthread_create(&thread, NULL, release, NULL);
    CHECK(cuStreamSynchronize(first));
    pthread_join(thread, NULL);
    expect(1);
}

static void host_function(void)
{
    launch(first, 1);
    CHECK(cuLaunchHostFunc(first, doze, NULL));
    launch(first, 1);
    CHECK(cuStreamSynchronize(first));
    CHECK(cuLaunchHostFunc(first, doze, NULL));
    CHECK(cuStreamSynchronize(first));
    expect(2);
}

static void event(void)
{
    CUevent mark;
    CHECK(cuEventCreate(&mark, CU_EVENT_DISABLE_TIMING));
    CHECK(cuLaunchHostFunc(first, doze, NULL));
    launch(first, 1);
    CHECK(cuEventRecord(mark, first));
    CHECK(cuStreamWaitEvent(second, mark, 0));
    launch(second, 1);
    CHECK(cuStreamSynchronize(second));
    expect(2);
    CHECK(cuEventDestroy(mark));
}

/* By engines, so channels, that were not used before. */
static void copies(void)
{
    CUdeviceptr memory;
    unsigned char *host;
    CHECK(cuMemHostAlloc((void **)&host, BYTES, 0));
    CHECK(cuMemAlloc(&memory, BYTES));
    memset(host, 7, BYTES);
    usleep(REST_US);
    CHECK(cuMemcpyHtoDAsync(memory, host, BYTES, first));
    CHECK(cuStreamSynchronize(first));
    usleep(REST_US);
    memset(host, 0, BYTES);
    CHECK(cuMemcpyDtoHAsync(host, memory, BYTES, second));
    CHECK(cuStreamSynchronize(second));
    if (host[0] != 7 || host[BYTES - 1] != 7)
        exit(1);
    CHECK(cuMemFree(memory));
    CHECK(cuMemFreeHost(host));
}

static void graph(void)
{
    CUgraph made;
    CUgraphExec exec;
    CHECK(cuStreamBeginCapture(first, CU_STREAM_CAPTURE_MODE_GLOBAL));
    for (int i = 0; i < 10; i++)
        launch(first, half_a_second / 50);
    CHECK(cuStreamEndCapture(first, &made));
    CHECK(cuGraphInstantiate(&exec, made, 0));
    usleep(REST_US);
    CHECK(cuGraphLaunch(exec, first));
    CHECK(cuStreamSynchronize(first));
    expect(10);
    CHECK(cuGraphExecDestroy(exec));
    CHECK(cuGraphDestroy(made));
}

/* On and off the GPU again and again. */
static void rests(void)
{
    for (unsigned i = 0; i < 200; i++) {
        launch(i % 2 ? first : second, 1);
        CHECK(cuCtxSynchronize());
        expect(i + 1);
        usleep(i * 37 % 7000);
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {{"short", short_kernel}, {"long", long_kernel}, {"value", value}, {"host", host_function},
             {"event", event},        {"copies", copies},    {"graph", graph}, {"rests", rests}};

int main(int argc, char **argv)
{
    CUcontext context;
    CUmodule module;
    void *host;

    half_a_second = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    CHECK(cuInit(0));
    CHECK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuModuleLoadData(&module, source));
    CHECK(cuModuleGetFunction(&add, module, "add"));
    CHECK(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
    CHECK(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    CHECK(cuMemHostAlloc(&host, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
    CHECK(cuMemHostGetDevicePointer(&counter, host, 0));
    words = host;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        words[0] = 0;
        usleep(REST_US);
        double began = now();
        cases[i].run();
        printf("{\"case\": \"%s\", \"seconds\": %.3f}\n", cases[i].name, now() - began);
        fflush(stdout);
    }
    return 0;
}
