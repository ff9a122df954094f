/*
 * A library that hooks what the shim hooks, as profilers do: it counts, and calls the next one. HOOK_VERSIONED: by
 * dlvsym. Built with -DPROGRAM it is the program that asks instead, each way that there is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

typedef int (*info_function)(size_t *, size_t *);

#ifndef PROGRAM
static int calls;
int layers_calls(void) { return calls; }

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    if (++calls > 1000)
        abort(); /* it goes round in circles */
    info_function next = (info_function)dlsym(RTLD_NEXT, "cuMemGetInfo_v2");
    return next ? next(free_bytes, total) : 999;
}
#else

static int say(const char *way, void *function)
{
    size_t free_bytes = 0, total = 0;
    int rc = function ? ((info_function)function)(&free_bytes, &total) : -1;

    printf("%s %d %zu\n", way, rc, total);
    return 0;
}

int main(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!driver)
        return 1;
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(driver, "cuInit");
    int (*retain)(void **, int) = (int (*)(void **, int))dlsym(driver, "cuDevicePrimaryCtxRetain");
    int (*set)(void *) = (int (*)(void *))dlsym(driver, "cuCtxSetCurrent");
    int (*get)(const char *, void **, int, unsigned long long, int *) =
        (int (*)(const char *, void **, int, unsigned long long, int *))dlsym(driver, "cuGetProcAddress_v2");
    int (*counted)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "layers_calls");
    void *context, *function = NULL, *again;

    if (!init || init(0) || retain(&context, 0) || set(context) || get("cuMemGetInfo", &function, 12000, 0, NULL))
        return 1;
    say("handle", dlsym(driver, "cuMemGetInfo_v2"));
    say("version", dlvsym(driver, "cuMemGetInfo_v2", "NO_SUCH"));
    say("default", dlsym(RTLD_DEFAULT, "cuMemGetInfo_v2"));
    say("next", dlsym(RTLD_NEXT, "cuMemGetInfo_v2"));
    say("address", function);
    again = dlopen("libcuda.so.1", RTLD_NOW | RTLD_DEEPBIND);
    say("deep", again ? dlsym(again, "cuMemGetInfo_v2") : NULL);
    printf("hooked %d\n", counted ? counted() : 0);
    /* what is not the driver's is found as without the shim: behind the caller, not behind the shim */
    void *next = dlsym(RTLD_NEXT, "malloc");
    printf("malloc %d\n", next == dlsym(RTLD_DEFAULT, "malloc"));
    printf("behind %d\n", dlsym(RTLD_NEXT, "layers_calls") != NULL);
    next = dlsym(driver, "cuNoSuchThing");
    printf("absent %d %d\n", next == NULL, dlerror() != NULL);
    return 0;
}
#endif
