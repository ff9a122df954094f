/*
 * Tier `shim`: memory of the GPU is counted where libcuda asks the driver for it, by the same calls that the guard
 * judges: so every way to it counts, whichever CUDA function it is behind. Unlike the guard's ledger this holds no
 * program that goes round it; node/shim_tier.py finds those out.
 */
#define _GNU_SOURCE
#include "driver_calls.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "hook.h"
#include "rm_abi.h"

#define BUCKETS 4096u

/* Memory, under as many names as there are; and what memory lies under, whose end is its end. */
struct piece {
    uint64_t bytes;
    unsigned names;
};
struct object {
    uint32_t root, handle, parent;
    struct piece *piece; /* NULL: no memory */
    struct object *next;
};

/* A driver call as the program made it, and what is in it; it may be wrapped in another. */
struct attempt {
    int fd;
    unsigned long request;
    void *argument;
    ioctl_function real;
    uint32_t nr, size;
    void *inner;
};

static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;
static struct object *buckets[BUCKETS];

/* What a child has of its parent's is the parent's. */
static void forget_parent(void)
{
    pthread_mutex_init(&table, NULL);
    memset(buckets, 0, sizeof buckets);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_parent); }

/* --- what there is; under `table` --- */

static struct object **place_of(uint32_t root, uint32_t handle)
{
    struct object **link = &buckets[((root * 31 + handle) * 2654435761u) >> 20];

    while (*link && ((*link)->root != root || (*link)->handle != handle))
        link = &(*link)->next;
    return link;
}
_Static_assert(BUCKETS == 1u << (32 - 20), "place_of");

static void drop(struct object **link)
{
    struct object *object = *link;
    struct piece *piece = object->piece;

    *link = object->next;
    free(object);
    if (piece && --piece->names == 0) {
        account_give(piece->bytes, MEMORY_DEVICE);
        free(piece);
    }
}

static void put(uint32_t root, uint32_t handle, uint32_t parent, struct piece *piece)
{
    struct object **link = place_of(root, handle), *object = malloc(sizeof *object);

    if (*link)
        drop(link);
    if (!object) /* its bytes stay on the account until the process ends */
        return;
    link = place_of(root, handle);
    *object = (struct object){root, handle, parent, piece, NULL};
    *link = object;
    if (piece)
        piece->names++;
}

static bool drop_child(uint32_t root, uint32_t parent)
{
    for (unsigned i = 0; i < BUCKETS; i++)
        for (struct object **link = &buckets[i]; *link; link = &(*link)->next)
            if ((*link)->root == root && ((*link)->parent == parent || parent == root)) {
                uint32_t handle = (*link)->handle;
                bool leaf = (*link)->piece != NULL;
                drop(link);
                while (!leaf && handle != root && drop_child(root, handle))
                    ;
                return true;
            }
    return false;
}

static void drop_tree(uint32_t root, uint32_t handle)
{
    struct object **link = place_of(root, handle);
    bool leaf = *link && (*link)->piece;

    if (*link)
        drop(link);
    else if (handle != root) /* nothing here lies under it */
        return;
    while (!leaf && drop_child(root, handle))
        ;
}

static void note(uint32_t root, uint32_t handle, uint32_t parent, struct piece *piece)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&table);
    put(root, handle, parent, piece);
    pthread_mutex_unlock(&table);
}

/* --- the calls --- */

/* The emulated card is no device of the kernel's: its library is its driver. */
static int perform(const struct attempt *attempt)
{
    int rc = attempt->real(attempt->fd, attempt->request, attempt->argument);

    if (rc == 0 || errno != ENOTTY)
        return rc;
    ioctl_function emulated = (ioctl_function)real_symbol("libcuda.so.1", "vgpu_emulated_ioctl");
    return emulated ? emulated(attempt->fd, attempt->request, attempt->argument) : rc;
}

static void undo(const struct attempt *attempt, uint32_t root, uint32_t parent, uint32_t handle)
{
    struct nvos00 gone = {.root = root, .parent = parent, .object = handle};
    struct attempt freeing = *attempt;

    freeing.request = NV_REQUEST(NV_ESC_RM_FREE, struct nvos00);
    freeing.argument = &gone;
    perform(&freeing);
}

/* Memory as the two doors ask for it. */
struct wish {
    uint32_t root, parent;
    const uint32_t *handle, *attr, *flags;
    uint64_t *size;
    uint32_t *status;
};

static int refuse(const struct wish *wish)
{
    *wish->status = NV_ERR_NO_MEMORY;
    return 0;
}

static int take_memory(const struct attempt *attempt, const struct wish *wish)
{
    uint64_t asked = *wish->size;
    struct piece *piece = malloc(sizeof *piece);

    if (!piece || !account_take(asked, MEMORY_DEVICE)) {
        free(piece);
        return refuse(wish);
    }
    int rc = perform(attempt);
    bool made = rc == 0 && *wish->status == NV_OK;
    uint64_t got = made && nv_takes_video_memory(*wish->attr, *wish->flags) ? *wish->size : 0;
    if (got > asked && !account_take(got - asked, MEMORY_DEVICE)) { /* rounded up past the quota */
        undo(attempt, wish->root, wish->parent, *wish->handle);
        made = false;
        got = 0;
        refuse(wish);
    }
    if (got < asked)
        account_give(asked - got, MEMORY_DEVICE);
    *piece = (struct piece){.bytes = got};
    if (made && got)
        note(wish->root, *wish->handle, wish->parent, piece);
    else
        free(piece);
    return rc;
}

/* Both forms of the call begin alike. */
static int call_alloc(const struct attempt *attempt)
{
    struct nvos21 *call = attempt->inner;
    uint32_t *status = attempt->size == sizeof(struct nvos64) ? &((struct nvos64 *)attempt->inner)->status
                                                              : &call->status;
    struct nv_memory_allocation_params *memory = (void *)(uintptr_t)call->params;

    if (call->class == NV01_MEMORY_LOCAL_USER && memory && nv_takes_video_memory(memory->attr, memory->flags)) {
        const struct wish wish = {call->root,     call->parent,  &call->object, &memory->attr,
                                  &memory->flags, &memory->size, status};
        return take_memory(attempt, &wish);
    }
    uint32_t class = call->class;
    int rc = perform(attempt);
    if (rc == 0 && *status == NV_OK && (class == NV01_DEVICE_0 || class == NV20_SUBDEVICE_0))
        note(call->root, call->object, call->parent, NULL);
    return rc;
}

/* The number may be another thread's as soon as the driver has freed it: so the table is held around both. */
static int free_object(const struct attempt *attempt, uint32_t root, uint32_t handle, const uint32_t *status)
{
    pthread_mutex_lock(&table);
    int rc = perform(attempt);
    if (rc == 0 && *status == NV_OK)
        drop_tree(root, handle);
    pthread_mutex_unlock(&table);
    return rc;
}

static int call_heap(const struct attempt *attempt)
{
    struct nvos32 *heap = attempt->inner;
    bool range = heap->function == NVOS32_FUNCTION_ALLOC_SIZE_RANGE;

    if ((range || heap->function == NVOS32_FUNCTION_ALLOC_SIZE) && nv_takes_video_memory(heap->attr, heap->flags)) {
        size_t offset = range ? NVOS32_ALLOC_SIZE_RANGE_SIZE_OFFSET : NVOS32_ALLOC_SIZE_SIZE_OFFSET;
        const struct wish wish = {heap->root,   heap->parent, &heap->memory,
                                  &heap->attr,  &heap->flags, (uint64_t *)(void *)((unsigned char *)heap + offset),
                                  &heap->status};
        return take_memory(attempt, &wish);
    }
    if (heap->function == NVOS32_FUNCTION_FREE)
        return free_object(attempt, heap->root, heap->memory, &heap->status);
    return perform(attempt);
}

static int call_free(const struct attempt *attempt)
{
    struct nvos00 *call = attempt->inner;
    return free_object(attempt, call->root, call->object, &call->status);
}

static int call_dup(const struct attempt *attempt)
{
    struct nvos55 *dup = attempt->inner;

    pthread_mutex_lock(&table);
    int rc = perform(attempt);
    struct object *source = *place_of(dup->client_source, dup->object_source);
    if (rc == 0 && dup->status == NV_OK && source && source->piece)
        put(dup->client, dup->object, dup->parent, source->piece);
    pthread_mutex_unlock(&table);
    return rc;
}

static const struct {
    uint32_t nr, size, other_size;
    int (*call)(const struct attempt *);
} doors[] = {
    {NV_ESC_RM_ALLOC, sizeof(struct nvos64), sizeof(struct nvos21), call_alloc},
    {NV_ESC_RM_FREE, sizeof(struct nvos00), 0, call_free},
    {NV_ESC_RM_DUP_OBJECT, sizeof(struct nvos55), 0, call_dup},
    {NV_ESC_RM_VID_HEAP_CONTROL, sizeof(struct nvos32), 0, call_heap},
};

bool driver_call_matters(unsigned long request)
{
    uint32_t nr = request & 0xFF;

    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++)
        if (doors[i].nr == nr)
            return true;
    return nr == NV_ESC_IOCTL_XFER_CMD; /* any of them, wrapped */
}

int driver_call(int fd, unsigned long request, void *argument, ioctl_function real)
{
    struct attempt attempt = {fd, request, argument, real, request & 0xFF, _IOC_SIZE(request), argument};

    if (attempt.nr == NV_ESC_IOCTL_XFER_CMD && attempt.size == sizeof(struct nv_xfer) && argument) {
        const struct nv_xfer *xfer = argument;
        attempt.nr = xfer->command & 0xFF;
        attempt.size = xfer->size;
        attempt.inner = (void *)(uintptr_t)xfer->params;
    }
    for (size_t i = 0; attempt.inner && i < sizeof doors / sizeof *doors; i++)
        if (doors[i].nr == attempt.nr && (doors[i].size == attempt.size || doors[i].other_size == attempt.size))
            return doors[i].call(&attempt);
    return perform(&attempt);
}
