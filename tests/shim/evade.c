/*
 * Ways past a shim: evade WAY. Asks libcuda, got in that way, for 64 MiB again and again, until it says no or there are
 * 4 GiB. Says how much it got and with what error, waits for a line, and does what WAY says of its end.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BLOCK (64ull << 20)

static void *open_driver(const char *way)
{
    if (strcmp(way, "namespace") == 0)
        return dlmopen(LM_ID_NEWLM, "libcuda.so.1", RTLD_NOW);
    return dlopen("libcuda.so.1", RTLD_NOW | (strcmp(way, "deepbind") == 0 ? RTLD_DEEPBIND : 0));
}

int main(int argc, char **argv)
{
    const char *way = argc > 1 ? argv[1] : "";
    void *driver = open_driver(way), *context;

    if (!driver) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(driver, "cuInit");
    int (*retain)(void **, int) = (int (*)(void **, int))dlsym(driver, "cuDevicePrimaryCtxRetain");
    int (*set)(void *) = (int (*)(void *))dlsym(driver, "cuCtxSetCurrent");
    int (*alloc)(uint64_t *, size_t) = (int (*)(uint64_t *, size_t))dlsym(driver, "cuMemAlloc_v2");
    uint64_t address, got = 0;
    int rc = init(0) || retain(&context, 0) || set(context) ? 999 : 0;

    while (rc == 0 && got < 4ull << 30) {
        rc = alloc(&address, BLOCK);
        got += rc ? 0 : BLOCK;
    }
    printf("%llu %d\n", (unsigned long long)got, rc);
    fflush(stdout);
    if (getchar() == EOF)
        return 0;
    if (strcmp(way, "exec") == 0)
        execl("/bin/sleep", "sleep", "30", (char *)NULL);
    return 0;
}
