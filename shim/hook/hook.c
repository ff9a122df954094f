/*
 * How the shim gets in: it stands before the driver's libraries in dlsym and cuGetProcAddress. It always asks
 * the real one first, with the caller's own arguments, and only then puts a wrapper in the place of what came
 * back, so an application never gets a form of a function that the driver would not have given it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stddef.h>
#include <string.h>

#include "elf.h"
#include "hook.h"

typedef int CUresult, nvmlReturn_t;
#define PER_THREAD_DEFAULT_STREAM 2 /* CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM */
enum { CUDA_SUCCESS = 0, CUDA_ERROR_NOT_INITIALIZED = 3, CUDA_ERROR_NOT_SUPPORTED = 801, NVML_ERROR_NOT_SUPPORTED = 3 };

typedef CUresult (*wrapper_function)();

/* Sanitizers look their own functions up by dlsym, before they are there to be called. */
#define EARLY __attribute__((no_sanitize("address,undefined,thread")))

static CUresult refuse_cuda(void) { return CUDA_ERROR_NOT_SUPPORTED; }
static nvmlReturn_t refuse_nvml(void) { return NVML_ERROR_NOT_SUPPORTED; }

/* Each class' wrapper: one that ANSWERS has to have one, or this does not link. Only addresses are taken here. */
#define DECLARE_PASSES(symbol)
#define DECLARE_ANSWERS(symbol) extern API CUresult symbol();
#define DECLARE_ACCOUNTS(symbol)
#define DECLARE_LAUNCHES(symbol) extern API CUresult symbol();
#define DECLARE_REFUSES(symbol)
#define CUDA_PASSES(symbol) NULL
#define CUDA_ANSWERS(symbol) symbol
#define CUDA_ACCOUNTS(symbol) NULL /* accounting_wrapper() */
#define CUDA_LAUNCHES(symbol) symbol
#define CUDA_REFUSES(symbol) (wrapper_function) refuse_cuda
#define NVML_PASSES(symbol) NULL
#define NVML_ANSWERS(symbol) symbol
#define NVML_REFUSES(symbol) (wrapper_function) refuse_nvml

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"
#define S(symbol, name, since, stream, class) DECLARE_##class(symbol)
#include "cuda_symbols.def"
#undef S
#define S(symbol, class) DECLARE_##class(symbol)
#include "nvml_symbols.def"
#undef S
ACCOUNTED_SYMBOLS(DECLARE_ANSWERS)
#pragma GCC diagnostic pop

static const struct row {
    const char *symbol, *name; /* name: as cuGetProcAddress knows it */
    int since;
    enum stream_kind stream;
    wrapper_function wrapper;
} rows[ALL_ROWS] = {
#define S(symbol, name, since, stream, class) {#symbol, #name, since, stream, CUDA_##class(symbol)},
#include "cuda_symbols.def"
#undef S
#define S(symbol, class) {#symbol, NULL, 0, ANY, NVML_##class(symbol)},
#include "nvml_symbols.def"
#undef S
};

static wrapper_function accounting_wrapper(enum row_id row)
{
    switch (row) {
#define W(symbol) \
    case ROW_##symbol: return symbol;
        ACCOUNTED_SYMBOLS(W)
#undef W
    default: return NULL;
    }
}

static void *reals[ALL_ROWS];

/* --- the dynamic linker's own --- */

typedef void *(*dlsym_function)(void *, const char *);
typedef void *(*dlvsym_function)(void *, const char *, const char *);

EARLY static void *remembered(void **place, const char *symbol)
{
    void *found = __atomic_load_n(place, __ATOMIC_RELAXED);

    if (!found) {
        found = libc_symbol(symbol);
        __atomic_store_n(place, found, __ATOMIC_RELAXED);
    }
    return found;
}

EARLY static dlsym_function real_dlsym(void)
{
    static void *found;
    return (dlsym_function)remembered(&found, "dlsym");
}

EARLY static dlvsym_function real_dlvsym(void)
{
    static void *found;
    return (dlvsym_function)remembered(&found, "dlvsym");
}

void *real_symbol(const char *library, const char *symbol)
{
    void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    void *found = handle ? real_dlsym()(handle, symbol) : NULL;

    if (handle)
        dlclose(handle); /* NOLOAD took a reference; the application holds its own */
    else
        dlerror(); /* it is not the application's error */
    return found;
}

void *next_symbol(const char *symbol) { return real_dlsym()(RTLD_NEXT, symbol); }

/* --- rows --- */

static const char *library_of(enum row_id row) { return row < CUDA_ROWS ? "libcuda.so.1" : "libnvidia-ml.so.1"; }

void *real(enum row_id row)
{
    void *function = __atomic_load_n(&reals[row], __ATOMIC_ACQUIRE);

    if (!function) {
        function = real_symbol(library_of(row), rows[row].symbol);
        __atomic_store_n(&reals[row], function, __ATOMIC_RELEASE);
    }
    return function;
}

/* Of rows[from] to rows[to - 1], sorted by symbol: the first that is not before it. */
static int lower_bound(const char *symbol, int from, int to)
{
    while (from < to) {
        int middle = from + (to - from) / 2;
        if (strcmp(rows[middle].symbol, symbol) < 0)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

EARLY static bool is_cuda_name(const char *symbol)
{
    return symbol[0] == 'c' && symbol[1] == 'u' && symbol[2] >= 'A' && symbol[2] <= 'Z';
}

EARLY static bool is_nvml_name(const char *symbol)
{
    return symbol[0] == 'n' && symbol[1] == 'v' && symbol[2] == 'm' && symbol[3] == 'l';
}

/* The row of a symbol that may_be_driver(); -1: none. */
static int row_of(const char *symbol)
{
    bool cuda = is_cuda_name(symbol);
    int end = cuda ? CUDA_ROWS : ALL_ROWS, row = lower_bound(symbol, cuda ? 0 : CUDA_ROWS, end);
    return row < end && strcmp(rows[row].symbol, symbol) == 0 ? row : -1;
}

/*
 * The row of what cuGetProcAddress was asked: the newest form that is not newer than the version asked for. All forms
 * of a name begin with it, so they lie behind each other, with others among them. `known`: is there any?
 */
static int row_asked(const char *name, int version, uint64_t flags, bool *known)
{
    enum stream_kind kind = flags & PER_THREAD_DEFAULT_STREAM ? PER_THREAD : LEGACY;
    size_t length = strlen(name);
    int best = -1;

    *known = false;
    for (int row = lower_bound(name, 0, CUDA_ROWS); row < CUDA_ROWS && !strncmp(rows[row].symbol, name, length);
         row++) {
        if (strcmp(rows[row].name, name) != 0)
            continue;
        *known = true;
        if (rows[row].since > version || (rows[row].stream != ANY && rows[row].stream != kind))
            continue;
        if (best < 0 || rows[row].since > rows[best].since)
            best = row;
    }
    return best;
}

static wrapper_function wrapper_of(enum row_id row)
{
    if (!slice_directory())
        return NULL;
    return rows[row].wrapper ? rows[row].wrapper : accounting_wrapper(row);
}

static bool in_same_object(const void *a, const void *b)
{
    Dl_info of_a, of_b;
    return dladdr(a, &of_a) && dladdr(b, &of_b) && of_a.dli_fbase == of_b.dli_fbase;
}

/*
 * The wrapper to hand out for a driver's function, or the function itself: what is not of the driver that the wrapper
 * would call is another library's that hooks the same, or of another copy of the driver (dlmopen), and stays as it is.
 */
static void *wrapped(enum row_id row, void *function)
{
    wrapper_function wrapper = function ? wrapper_of(row) : NULL;

    if (!wrapper)
        return function;
    const void *driver = real(row);
    return driver && in_same_object(function, driver) ? (void *)wrapper : function;
}

/* --- what applications call --- */

/* One of the driver's that no table here has heard of: it is let through, and the daemon is told. */
static void note_unknown(const char *symbol, const void *function)
{
    Dl_info where;

    if (function && slice_directory() && dladdr(function, &where) && where.dli_fname &&
        strstr(where.dli_fname, is_nvml_name(symbol) ? "/libnvidia-ml.so" : "/libcuda.so"))
        report_unknown(symbol);
}

static void *found_by_name(int row, const char *symbol, void *function)
{
    if (row >= 0)
        return wrapped((enum row_id)row, function);
    note_unknown(symbol, function);
    return function;
}

/* What dlsym(RTLD_NEXT) finds for code at `caller`: asked from here it would be looked for behind this library. */
static void *next_after(const void *caller, const char *symbol)
{
    struct link_map *map = NULL;
    Dl_info where;

    if (!dladdr1(caller, &where, (void **)&map, RTLD_DL_LINKMAP) || !map)
        return NULL;
    void *found = NULL;
    for (map = map->l_next; map && !found; map = map->l_next)
        found = object_symbol(map, symbol);
    return found;
}

/* Is it of the driver's, as far as its name goes? This sorts out nearly every look-up of a process. */
EARLY static bool may_be_driver(const char *symbol) { return symbol && (is_cuda_name(symbol) || is_nvml_name(symbol)); }

static void *driver_symbol(void *handle, const char *symbol, const void *caller)
{
    int row = row_of(symbol);
    void *found = handle == RTLD_NEXT ? next_after(caller, symbol) : real_dlsym()(handle, symbol);

    if (!found && handle == RTLD_DEFAULT && row >= 0) /* the caller sees libraries that this one does not */
        found = real((enum row_id)row);
    return found_by_name(row, symbol, found);
}

/* Is there something to find instead of the driver's? Where the caller's place matters, all else is left to jump. */
EARLY static bool is_answered(void *handle, const char *symbol)
{
    if (!may_be_driver(symbol))
        return false;
    if (handle != RTLD_DEFAULT && handle != RTLD_NEXT)
        return true;
    int row = row_of(symbol);
    return row >= 0 && wrapper_of((enum row_id)row);
}

/*
 * For every other symbol these must be a jump, not a call: the real one finds RTLD_NEXT and RTLD_DEFAULT by its return
 * address, which has to stay the application's. tests/shim holds the compiler to it.
 */
EARLY __attribute__((optimize("O2", "no-stack-protector"))) API void *dlsym(void *handle, const char *symbol)
{
    if (!is_answered(handle, symbol))
        return real_dlsym()(handle, symbol);
    return driver_symbol(handle, symbol, __builtin_return_address(0));
}

EARLY __attribute__((optimize("O2", "no-stack-protector"))) API void *dlvsym(void *handle, const char *symbol,
                                                                             const char *version)
{
    if (!may_be_driver(symbol) || handle == RTLD_NEXT)
        return real_dlvsym()(handle, symbol, version);
    return found_by_name(row_of(symbol), symbol, real_dlvsym()(handle, symbol, version));
}

static void wrap_answer(const char *name, void **function, int version, uint64_t flags)
{
    bool known;

    if (!name || !function || !*function)
        return;
    int row = row_asked(name, version, flags, &known);
    if (!known)
        note_unknown(name, *function);
    /* newer than all that is known here: what came back may be a form with other arguments */
    if (row < 0 || (version > CUDA_SYMBOLS_VERSION && *function != real_symbol("libcuda.so.1", rows[row].symbol)))
        return;
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
