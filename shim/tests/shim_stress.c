/*
 * Threads that do at once what programs do through the shim, for a sanitizer to watch. It is linked with the shim, in a
 * slice's environment: shim_stress SECONDS. Exits with 0, or says what went wrong.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define THREADS 6
#define MIB (1ull << 20)
enum { CUDA_SUCCESS = 0, CUDA_ERROR_OUT_OF_MEMORY = 2, MANAGED_GLOBAL = 1 };

typedef int CUresult;
static void *driver, *nvml, *context;
int failures;
static atomic_bool over;

static void *need(void *library, const char *symbol)
{
    void *found = dlsym(library, symbol);
    if (!found) {
        fprintf(stderr, "no %s\n", symbol);
        exit(2);
    }
    return found;
}

static void take_memory(void)
{
    CUresult (*alloc)(uint64_t *, size_t) = need(driver, "cuMemAlloc_v2");
    CUresult (*managed)(uint64_t *, size_t, unsigned) = need(driver, "cuMemAllocManaged");
    CUresult (*release)(uint64_t) = need(driver, "cuMemFree_v2");
    uint64_t plain, shared, none;

    CHECK(alloc(&plain, 4 * MIB) == CUDA_SUCCESS);
    CHECK(managed(&shared, 4 * MIB, MANAGED_GLOBAL) == CUDA_SUCCESS);
    CHECK(managed(&none, 1ull << 40, MANAGED_GLOBAL) == CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(alloc(&none, 1ull << 40) == CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(release(shared) == CUDA_SUCCESS);
    CHECK(release(plain) == CUDA_SUCCESS);
}

static void ask_numbers(void)
{
    CUresult (*get)(const char *, void **, int, uint64_t, int *) = need(driver, "cuGetProcAddress_v2");
    CUresult (*info)(size_t *, size_t *) = NULL;
    int (*by_index)(unsigned, void **) = need(nvml, "nvmlDeviceGetHandleByIndex_v2");
    int (*list)(void *, unsigned *, void *) = need(nvml, "nvmlDeviceGetComputeRunningProcesses_v3");
    unsigned char rows[64][24];
    unsigned count = 64;
    size_t free_bytes, total;
    void *device;
    int status;

    CHECK(get("cuMemGetInfo", (void **)&info, 12000, 0, &status) == CUDA_SUCCESS);
    CHECK(info(&free_bytes, &total) == CUDA_SUCCESS && free_bytes <= total && total == 1ull << 30);
    CHECK(by_index(0, &device) == 0 && list(device, &count, rows) == 0);
    CHECK(count == 1 || (count == 0 && strcmp(getenv("VGPU_TIER"), "shim") == 0)); /* there it is told once a second */
    CHECK(!dlsym(driver, "cuNoSuchThing"));
}

static void launch(void *kernel)
{
    CUresult (*make)(void **, unsigned) = need(driver, "cuStreamCreate");
    CUresult (*run)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                    void **) = need(driver, "cuLaunchKernel");
    CUresult (*synchronize)(void *) = need(driver, "cuStreamSynchronize"),
                                 (*destroy)(void *) = need(driver, "cuStreamDestroy_v2");
    void *stream;

    CHECK(make(&stream, 0) == CUDA_SUCCESS);
    for (int i = 0; i < 5; i++)
        CHECK(run(kernel, 1, 1, 1, 1, 1, 1, 0, i % 2 ? stream : NULL, NULL, NULL) == CUDA_SUCCESS);
    CHECK(synchronize(stream) == CUDA_SUCCESS && synchronize(NULL) == CUDA_SUCCESS);
    CHECK(destroy(stream) == CUDA_SUCCESS);
}

static void *load_kernel(void **module)
{
    static const char text[] = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }\n";
    CUresult (*load)(void **, const void *) = need(driver, "cuModuleLoadData");
    CUresult (*get)(void **, void *, const char *) = need(driver, "cuModuleGetFunction");
    void *kernel = NULL;

    CHECK(load(module, text) == CUDA_SUCCESS && get(&kernel, *module, "nothing") == CUDA_SUCCESS);
    return kernel;
}

static void fork_child(void)
{
    pid_t child = fork();

    if (child == 0) {
        CUresult (*release)(uint64_t) = need(driver, "cuMemFree_v2");
        release(0);
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, NULL, 0) == child);
}

static void *work(void *number)
{
    CUresult (*set)(void *) = need(driver, "cuCtxSetCurrent");

    CHECK(set(context) == CUDA_SUCCESS);
    void *module, *kernel = load_kernel(&module);
    for (int i = 0; !over; i++) {
        take_memory();
        ask_numbers();
        launch(kernel);
        if (number == NULL && i % 16 == 0)
            fork_child();
    }
    CUresult (*unload)(void *) = need(driver, "cuModuleUnload");
    CHECK(unload(module) == CUDA_SUCCESS);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];

    driver = dlopen("libcuda.so.1", RTLD_NOW);
    nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!driver || !nvml) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    CUresult (*init)(unsigned) = need(driver, "cuInit"),
             (*retain)(void **, int) = need(driver, "cuDevicePrimaryCtxRetain");
    CUresult (*reset)(int) = need(driver, "cuDevicePrimaryCtxReset_v2");
    int (*nvml_init)(void) = need(nvml, "nvmlInit_v2");
    CHECK(init(0) == 0 && retain(&context, 0) == 0 && nvml_init() == 0);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    sleep(argc > 1 ? (unsigned)atoi(argv[1]) : 2);
    over = true;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(reset(0) == CUDA_SUCCESS);
    return failures ? 1 : 0;
}
