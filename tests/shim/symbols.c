/*
 * Every symbol of the table, and every name x version x kind of default stream through cuGetProcAddress: a line each of
 * what came back. Run natively and in a slice, the lines have to be the same.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *symbol, *name;
    int since;
} rows[] = {
#define S(symbol, name, since, stream, class) {#symbol, #name, since},
#include "cuda_symbols.def"
#undef S
};
#define ROWS (sizeof rows / sizeof *rows)

typedef int (*get_function)(const char *, void **, int, uint64_t, int *);

/* A function by the name that its library exports it under. */
static const char *what(void *function)
{
    Dl_info info;

    if (!function)
        return "-";
    if (!dladdr(function, &info))
        return "unmapped";
    if (info.dli_sname && info.dli_saddr == function)
        return info.dli_sname;
    return strstr(info.dli_fname, "libvgpu") ? "refused" : "unnamed";
}

static void ask(get_function get, const char *name, int version)
{
    for (uint64_t flags = 0; flags <= 2; flags++) {
        void *function = NULL;
        int status = -1, rc = get(name, &function, version, flags, &status);
        printf("%s %d %d: %d %d %s\n", name, version, (int)flags, rc, status, rc ? "-" : what(function));
    }
}

int main(void)
{
    static const int versions[] = {2000, 10000, 12000, 13000, 99990};
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    get_function get = driver ? (get_function)dlsym(driver, "cuGetProcAddress_v2") : NULL;

    if (!get) {
        fprintf(stderr, "no driver: %s\n", dlerror());
        return 1;
    }
    for (size_t i = 0; i < ROWS; i++) {
        printf("%s: %s\n", rows[i].symbol, what(dlsym(driver, rows[i].symbol)));
        ask(get, rows[i].name, rows[i].since);
        ask(get, rows[i].name, rows[i].since - 10);
        if (strcmp(rows[i].symbol, rows[i].name) == 0)
            for (size_t v = 0; v < sizeof versions / sizeof *versions; v++)
                ask(get, rows[i].name, versions[v]);
    }
    return 0;
}
