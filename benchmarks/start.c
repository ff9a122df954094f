/* What every CUDA program does first: the driver, a context, how much memory is free. Says how long it took, in ms. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

int main(void)
{
    double began = now_ms();
    void *driver = dlopen("libcuda.so.1", RTLD_NOW), *context, *function = NULL;
    int (*get)(const char *, void **, int, uint64_t, int *) =
        driver ? (int (*)(const char *, void **, int, uint64_t, int *))dlsym(driver, "cuGetProcAddress_v2") : NULL;
    size_t free_bytes, total;
    int status;

    /* the runtime looks up about five hundred functions */
    for (int i = 0; get && i < 500; i++)
        if (get(i % 2 ? "cuMemGetInfo" : "cuLaunchKernel", &function, 12000, 0, &status))
            return 1;
    if (!get || get("cuInit", &function, 12000, 0, &status) || ((int (*)(unsigned))function)(0) ||
        get("cuDevicePrimaryCtxRetain", &function, 12000, 0, &status) ||
        ((int (*)(void **, int))function)(&context, 0) || get("cuCtxSetCurrent", &function, 12000, 0, &status) ||
        ((int (*)(void *))function)(context) || get("cuMemGetInfo", &function, 12000, 0, &status) ||
        ((int (*)(size_t *, size_t *))function)(&free_bytes, &total))
        return 1;
    printf("%f\n", now_ms() - began);
    return 0;
}
