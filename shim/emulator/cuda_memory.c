#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda_state.h"
#include "rm_abi.h"

/* Sorted by address, so that a kernel's access is checked by bisection. */
static struct {
    pthread_rwlock_t lock;
    struct allocation *items;
    size_t count, room;
} table = {.lock = PTHREAD_RWLOCK_INITIALIZER};

/* Index of the first allocation above the address; the one before it is the only that can hold it. */
static size_t upper(CUdeviceptr address)
{
    size_t low = 0, high = table.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (table.items[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct allocation *holder(CUdeviceptr address)
{
    size_t i = upper(address);
    return i && address - table.items[i - 1].address < table.items[i - 1].size ? &table.items[i - 1] : NULL;
}

static bool find(CUdeviceptr address, struct allocation *out)
{
    pthread_rwlock_rdlock(&table.lock);
    struct allocation *found = holder(address);
    if (found)
        *out = *found;
    pthread_rwlock_unlock(&table.lock);
    return found != NULL;
}

static CUresult remember(const struct allocation *allocation)
{
    CUresult rc = CUDA_SUCCESS;

    pthread_rwlock_wrlock(&table.lock);
    if (table.count == table.room) {
        size_t room = table.room ? table.room * 2 : 64;
        struct allocation *bigger = reallocarray(table.items, room, sizeof *bigger);
        if (bigger) {
            table.items = bigger;
            table.room = room;
        } else {
            rc = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    if (rc == CUDA_SUCCESS) {
        size_t at = upper(allocation->address);
        memmove(&table.items[at + 1], &table.items[at], (table.count - at) * sizeof *table.items);
        table.items[at] = *allocation;
        table.count++;
    }
    pthread_rwlock_unlock(&table.lock);
    return rc;
}

static bool is_host(const struct allocation *a) { return !a->handle && !a->managed; }

static bool forget(CUdeviceptr address, bool host, struct allocation *out)
{
    pthread_rwlock_wrlock(&table.lock);
    struct allocation *found = holder(address);
    bool ok = found && found->address == address && is_host(found) == host;
    if (ok) {
        *out = *found;
        memmove(found, found + 1, (size_t)(&table.items[table.count] - found - 1) * sizeof *found);
        table.count--;
    }
    pthread_rwlock_unlock(&table.lock);
    return ok;
}

bool is_device_memory(void *unused, uint64_t address, uint64_t size)
{
    struct allocation a;
    (void)unused;
    return find(address, &a) && size <= a.size - (address - a.address);
}

CUresult device_alloc(struct context *context, uint64_t size, CUdeviceptr *out)
{
    struct nv_memory_allocation_params params = {.size = size};
    struct allocation a = {.size = size, .context = context};

    if (!size || !out)
        return CUDA_ERROR_INVALID_VALUE;
    if (size > context->gpu->driver.device->memory_total)
        params.size = size > UINT64_MAX / 2 ? UINT64_MAX / 2 : size; /* let the driver say no, and count it */
    uint32_t status = rm_alloc(context->gpu, context->gpu->device, &a.handle, NV01_MEMORY_LOCAL_USER, &params,
                               sizeof params);
    if (status != NV_OK)
        return status == NV_ERR_NO_MEMORY ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_UNKNOWN;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    a.address = (uintptr_t)memory;
    if (memory == MAP_FAILED || remember(&a) != CUDA_SUCCESS) {
        if (memory != MAP_FAILED)
            munmap(memory, size);
        rm_free(context->gpu, a.handle);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = a.address;
    return CUDA_SUCCESS;
}

static void release(const struct allocation *a)
{
    munmap((void *)(uintptr_t)a->address, a->size);
    if (a->handle)
        rm_free(a->context->gpu, a->handle);
}

CUresult device_free(CUdeviceptr address)
{
    struct allocation a;

    if (!address)
        return CUDA_SUCCESS;
    if (!find(address, &a) || a.address != address || is_host(&a))
        return CUDA_ERROR_INVALID_VALUE;
    wait_for(a.context, a.context->submitted); /* cuMemFree waits for the device, as the real one does */
    if (!forget(address, false, &a))
        return CUDA_ERROR_INVALID_VALUE;
    release(&a);
    return CUDA_SUCCESS;
}

void free_allocations(struct context *context)
{
    struct allocation a;

    for (size_t i = 0; i < table.count;) {
        if (table.items[i].context == context && !is_host(&table.items[i]) && forget(table.items[i].address, false, &a))
            release(&a);
        else
            i++;
    }
}

/* --- allocation --- */

#define CURRENT()                              \
    struct context *context;                   \
    do {                                       \
        CUresult current_ = current(&context); \
        if (current_ != CUDA_SUCCESS)          \
            return current_;                   \
    } while (0)

API CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t size)
{
    CURRENT();
    return device_alloc(context, size, out);
}
API CUresult cuMemFree_v2(CUdeviceptr address)
{
    CUresult rc = ready();
    return rc ? rc : device_free(address);
}
API CUresult cuMemAllocPitch_v2(CUdeviceptr *out, size_t *pitch, size_t width, size_t height, unsigned element)
{
    CURRENT();
    (void)element;
    if (!pitch || !width || !height || width > SIZE_MAX / 2)
        return CUDA_ERROR_INVALID_VALUE;
    *pitch = (width + 511) / 512 * 512;
    return *pitch > SIZE_MAX / height ? CUDA_ERROR_OUT_OF_MEMORY : device_alloc(context, *pitch * height, out);
}
API CUresult cuMemAllocAsync(CUdeviceptr *out, size_t size, CUstream handle)
{
    struct context *context;
    struct stream *stream;
    CUresult rc = stream_of(handle, &context, &stream);
    return rc ? rc : device_alloc(context, size, out);
}
API CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle)
{
    CUresult rc = ready();
    (void)handle;
    return rc ? rc : device_free(address);
}

/* Host and device share addresses here, so both can use it. */
static CUresult host_alloc(void **out, size_t size, bool managed)
{
    CURRENT();
    if (!out || !size)
        return CUDA_ERROR_INVALID_VALUE;
    struct allocation a = {.size = size, .context = context, .managed = managed};
    *out = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (managed ? MAP_NORESERVE : 0), -1, 0);
    if (*out == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    a.address = (uintptr_t)*out;
    CUresult rc = remember(&a);
    if (rc != CUDA_SUCCESS)
        munmap(*out, size);
    return rc;
}
API CUresult cuMemAllocManaged(CUdeviceptr *out, size_t size, unsigned flags)
{
    void *memory;
    CUresult rc = !out || flags < 1 || flags > 2 ? CUDA_ERROR_INVALID_VALUE : host_alloc(&memory, size, true);

    if (rc == CUDA_SUCCESS)
        *out = (uintptr_t)memory;
    return rc;
}
API CUresult cuMemHostAlloc(void **out, size_t size, unsigned flags)
{
    (void)flags;
    return host_alloc(out, size, false);
}
API CUresult cuMemAllocHost_v2(void **out, size_t size) { return cuMemHostAlloc(out, size, 0); }
API CUresult cuMemFreeHost(void *pointer)
{
    struct allocation a;
    if (!forget((uintptr_t)pointer, true, &a))
        return CUDA_ERROR_INVALID_VALUE;
    release(&a);
    return CUDA_SUCCESS;
}
API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *pointer, unsigned flags)
{
    (void)flags;
    if (!out || !is_device_memory(NULL, (uintptr_t)pointer, 1))
        return CUDA_ERROR_INVALID_VALUE;
    *out = (uintptr_t)pointer;
    return CUDA_SUCCESS;
}
API CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr address)
{
    struct allocation a;
    if (!find(address, &a))
        return CUDA_ERROR_NOT_FOUND;
    if (base)
        *base = a.address;
    if (size)
        *size = a.size;
    return CUDA_SUCCESS;
}

static bool pointer_attribute(int attribute, CUdeviceptr address, const struct allocation *a, void *out)
{
    switch (attribute) {
    case POINTER_CONTEXT: *(void **)out = a->context; return true;
    case POINTER_MEMORY_TYPE: *(unsigned *)out = is_host(a) ? MEMORY_TYPE_HOST : MEMORY_TYPE_DEVICE; return true;
    case POINTER_DEVICE_POINTER:
    case POINTER_HOST_POINTER: *(CUdeviceptr *)out = address; return true;
    case POINTER_IS_MANAGED: *(unsigned *)out = a->managed; return true;
    case POINTER_DEVICE_ORDINAL: *(int *)out = a->context->ordinal; return true;
    case POINTER_RANGE_START: *(CUdeviceptr *)out = a->address; return true;
    case POINTER_RANGE_SIZE: *(size_t *)out = a->size; return true;
    default: return false;
    }
}
API CUresult cuPointerGetAttribute(void *out, int attribute, CUdeviceptr address)
{
    struct allocation a;
    return out && find(address, &a) && pointer_attribute(attribute, address, &a, out) ? CUDA_SUCCESS
                                                                                      : CUDA_ERROR_INVALID_VALUE;
}
API CUresult cuPointerGetAttributes(unsigned count, int *attributes, void **out, CUdeviceptr address)
{
    struct allocation a;
    bool known = find(address, &a);
    for (unsigned i = 0; i < count; i++)
        if (!known || !pointer_attribute(attributes[i], address, &a, out[i]))
            memset(out[i], 0, attributes[i] == POINTER_CONTEXT ? sizeof(void *) : sizeof(int));
    return CUDA_SUCCESS;
}

/* --- copies and fills: everything is in this process's memory, so one routine serves them all --- */

struct transfer {
    CUdeviceptr to, from;
    uint64_t count;
    uint32_t value;
    uint32_t width;
};

static CUresult run_copy(struct context *context, void *argument)
{
    struct transfer *t = argument;
    (void)context;
    memmove((void *)(uintptr_t)t->to, (void *)(uintptr_t)t->from, t->count);
    return CUDA_SUCCESS;
}
static CUresult run_fill(struct context *context, void *argument)
{
    struct transfer *t = argument;
    unsigned char *to = (void *)(uintptr_t)t->to;
    (void)context;
    for (uint64_t i = 0; i < t->count; i++)
        memcpy(to + i * t->width, &t->value, t->width);
    return CUDA_SUCCESS;
}

enum { DEVICE_TO = 1, DEVICE_FROM = 2, SYNCHRONOUS = 4 };
static CUresult transfer(work run, struct transfer t, int what, CUstream handle)
{
    struct context *context;
    struct stream *stream;
    uint64_t ticket;
    CUresult rc = stream_of(handle, &context, &stream);

    if (rc != CUDA_SUCCESS || !t.count)
        return rc;
    if (!t.to || (run == run_copy && !t.from))
        return CUDA_ERROR_INVALID_VALUE;
    if (((what & DEVICE_TO) && !is_device_memory(NULL, t.to, t.count * t.width)) ||
        ((what & DEVICE_FROM) && !is_device_memory(NULL, t.from, t.count)))
        return CUDA_ERROR_INVALID_VALUE;
    rc = submit(context, stream, run, &t, sizeof t, &ticket);
    return rc || !(what & SYNCHRONOUS) ? rc : wait_for(context, ticket);
}
#define COPY(name, to_type, from_type, what)                                                      \
    API CUresult name(to_type to, from_type from, size_t count)                                   \
    {                                                                                             \
        return transfer(run_copy, (struct transfer){(uintptr_t)to, (uintptr_t)from, count, 0, 1}, \
                        (what) | SYNCHRONOUS, NULL);                                              \
    }
#define COPY_ASYNC(name, to_type, from_type, what)                                                                 \
    API CUresult name(to_type to, from_type from, size_t count, CUstream stream)                                   \
    {                                                                                                              \
        return transfer(run_copy, (struct transfer){(uintptr_t)to, (uintptr_t)from, count, 0, 1}, (what), stream); \
    }
#define FILL(name, type)                                                                                         \
    API CUresult name(CUdeviceptr to, type value, size_t count)                                                  \
    {                                                                                                            \
        return transfer(run_fill, (struct transfer){to, 0, count, value, sizeof value}, DEVICE_TO | SYNCHRONOUS, \
                        NULL);                                                                                   \
    }                                                                                                            \
    API CUresult name##Async(CUdeviceptr to, type value, size_t count, CUstream stream)                          \
    {                                                                                                            \
        return transfer(run_fill, (struct transfer){to, 0, count, value, sizeof value}, DEVICE_TO, stream);      \
    }

COPY(cuMemcpy, CUdeviceptr, CUdeviceptr, 0)
COPY(cuMemcpyHtoD_v2, CUdeviceptr, const void *, DEVICE_TO)
COPY(cuMemcpyDtoH_v2, void *, CUdeviceptr, DEVICE_FROM)
COPY(cuMemcpyDtoD_v2, CUdeviceptr, CUdeviceptr, DEVICE_TO | DEVICE_FROM)
COPY_ASYNC(cuMemcpyAsync, CUdeviceptr, CUdeviceptr, 0)
COPY_ASYNC(cuMemcpyHtoDAsync_v2, CUdeviceptr, const void *,
           DEVICE_TO | SYNCHRONOUS) /* pageable memory: the source may change after */
COPY_ASYNC(cuMemcpyDtoHAsync_v2, void *, CUdeviceptr, DEVICE_FROM)
COPY_ASYNC(cuMemcpyDtoDAsync_v2, CUdeviceptr, CUdeviceptr, DEVICE_TO | DEVICE_FROM)
FILL(cuMemsetD8, unsigned char)
FILL(cuMemsetD16, unsigned short)
FILL(cuMemsetD32, unsigned int)
/* the names that the ABI exports for the fills above */
API CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) { return cuMemsetD8(to, value, count); }
API CUresult cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count)
{
    return cuMemsetD16(to, value, count);
}
API CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned int value, size_t count) { return cuMemsetD32(to, value, count); }
