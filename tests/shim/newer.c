/* libcuda.so.1 of a CUDA to come: a function, and a form of one, that no table here has. */
#include <string.h>

int cuInit(unsigned flags) { return (int)flags; }
int cuMemGetInfo_v2(void *a, void *b) { return a == b ? 2 : 22; }
int cuMemGetInfo_v7(void *a, void *b, void *c) { return a == b && b == c ? 7 : 77; }
int cuTeleport(void) { return 42; }

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status)
{
    (void)flags;
    *status = 0;
    if (strcmp(name, "cuTeleport") == 0)
        *function = (void *)cuTeleport;
    else if (strcmp(name, "cuMemGetInfo") == 0)
        *function = version >= 20000 ? (void *)cuMemGetInfo_v7 : (void *)cuMemGetInfo_v2;
    else
        *function = (void *)0;
    return *function ? 0 : 500;
}
