/*
 * How the shim gets in: it stands before the driver's libraries in dlsym and cuGetProcAddress. It always asks
 * the real one first, with the caller's own arguments, and only then puts a wrapper in the place of what came
 * back, so an application never gets a form of a function that the driver would not have given it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#include "hook.h"

typedef int CUresult;
#define PER_THREAD_DEFAULT_STREAM 2 /* CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM */
#define CUDA_SUCCESS 0
#define CUDA_ERROR_NOT_INITIALIZED 3

/* Only addresses: answers.c and this file define them with their true types. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"
#define ROW(symbol, name, since, stream, tiers) extern API CUresult symbol();
CUDA_ROWS(ROW)
NVML_ROWS(ROW)
#undef ROW
#pragma GCC diagnostic pop

static const struct {
    const char *symbol, *name, *library;
    int since;
    enum stream_kind stream;
    enum tiers tiers;
    CUresult (*wrapper)();
} rows[ROW_COUNT] = {
#define ROW(symbol, name, since, stream, tiers) \
    [ROW_##symbol] = {#symbol, name, "libcuda.so.1", since, stream, tiers, symbol},
    CUDA_ROWS(ROW)
#undef ROW
#define ROW(symbol, name, since, stream, tiers) \
    [ROW_##symbol] = {#symbol, name, "libnvidia-ml.so.1", since, stream, tiers, symbol},
        NVML_ROWS(ROW)
#undef ROW
};
static void *reals[ROW_COUNT];

typedef void *(*dlsym_function)(void *, const char *);

static dlsym_function real_dlsym(void)
{
    static dlsym_function found;
    /* glibc 2.34 moved it into libc under a new version; the old ones are x86-64's and aarch64's first */
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17"};

    for (size_t i = 0; !found && i < sizeof versions / sizeof *versions; i++) {
        void *symbol = dlvsym(RTLD_NEXT, "dlsym", versions[i]);
        memcpy(&found, &symbol, sizeof found);
    }
    return found;
}

void *real_symbol(const char *library, const char *symbol)
{
    void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    void *found = handle ? real_dlsym()(handle, symbol) : NULL;

    if (handle)
        dlclose(handle); /* NOLOAD took a reference; the application holds its own */
    return found;
}

void *next_symbol(const char *symbol) { return real_dlsym()(RTLD_NEXT, symbol); }

void *real(enum row_id row)
{
    void *function = __atomic_load_n(&reals[row], __ATOMIC_ACQUIRE);

    if (!function) {
        function = real_symbol(rows[row].library, rows[row].symbol);
        __atomic_store_n(&reals[row], function, __ATOMIC_RELEASE);
    }
    return function;
}

static bool applies(enum row_id row) { return slice_directory() && (rows[row].tiers == TIERS_BOTH || ledger_counts()); }

/* The wrapper to hand out for a driver's function, or the function itself. */
static void *wrapped(enum row_id row, void *function)
{
    void *wrapper;

    if (!function || !applies(row))
        return function;
    memcpy(&wrapper, &rows[row].wrapper, sizeof wrapper);
    if (function != wrapper)
        __atomic_store_n(&reals[row], function, __ATOMIC_RELEASE);
    return wrapper;
}

/* The row of an exported symbol; -1: none. The first letters sort out nearly every lookup of a process. */
static int row_of(const char *symbol)
{
    if (!symbol || (strncmp(symbol, "cu", 2) != 0 && strncmp(symbol, "nvml", 4) != 0))
        return -1;
    for (int row = 0; row < ROW_COUNT; row++)
        if (strcmp(rows[row].symbol, symbol) == 0)
            return row;
    return -1;
}

/*
 * For every other symbol this must be a jump, not a call: the real dlsym finds RTLD_NEXT and RTLD_DEFAULT by
 * its return address, which has to stay the application's. tests/shim holds the compiler to it.
 */
__attribute__((optimize("O2", "no-stack-protector"))) API void *dlsym(void *handle, const char *symbol)
{
    int row = row_of(symbol);

    if (row < 0)
        return real_dlsym()(handle, symbol);
    return wrapped((enum row_id)row, real_dlsym()(handle, symbol));
}

/* The row of what cuGetProcAddress was asked: the newest form that is not newer than the version asked for. */
static int row_asked(const char *name, int version, uint64_t flags)
{
    enum stream_kind kind = flags & PER_THREAD_DEFAULT_STREAM ? STREAM_PER_THREAD : STREAM_LEGACY;
    int best = -1;

    for (int row = 0; name && row < ROW_COUNT; row++) {
        if (!rows[row].name || strcmp(rows[row].name, name) != 0 || rows[row].since > version)
            continue;
        if (rows[row].stream != STREAM_ANY && rows[row].stream != kind)
            continue;
        if (best < 0 || rows[row].since > rows[best].since)
            best = row;
    }
    return best;
}

static void wrap_answer(const char *name, void **function, int version, uint64_t flags)
{
    int row = row_asked(name, version, flags);

    if (row >= 0 && function)
        *function = wrapped((enum row_id)row, *function);
}

API CUresult cuGetProcAddress(const char *name, void **function, int version, uint64_t flags)
{
    CUresult (*next)(const char *, void **, int,
                     uint64_t) = (CUresult (*)(const char *, void **, int, uint64_t))real(ROW_cuGetProcAddress);
    CUresult rc = next ? next(name, function, version, flags) : CUDA_ERROR_NOT_INITIALIZED;

    if (rc == CUDA_SUCCESS)
        wrap_answer(name, function, version, flags);
    return rc;
}

API CUresult cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
    CUresult (*next)(const char *, void **, int, uint64_t,
                     int *) = (CUresult (*)(const char *, void **, int, uint64_t, int *))real(ROW_cuGetProcAddress_v2);
    CUresult rc = next ? next(name, function, version, flags, status) : CUDA_ERROR_NOT_INITIALIZED;

    if (rc == CUDA_SUCCESS)
        wrap_answer(name, function, version, flags);
    return rc;
}
