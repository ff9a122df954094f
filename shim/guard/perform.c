#define _GNU_SOURCE
#include "perform.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "clients.h"
#include "names.h"
#include "params.h"
#include "perform_parts.h"
#include "pieces.h"
#include "processes.h"
#include "reach.h"
#include "sched.h"
#include "util.h"

/*
 * What the driver did and what the ledger says must not come apart, or a freed number that is taken anew meanwhile
 * would be dropped from the account: one lock a client around both, as the driver has. They are the tenant's: one that
 * keeps the guard waiting for its memory keeps nobody else.
 */
static unsigned lock_of(uint32_t root) { return (root * 2654435761u) >> 26; }
_Static_assert(HOLDINGS_ROOT_LOCKS == 1u << 6, "lock_of");

void parts_lock_roots(struct holdings *holdings, uint32_t a, uint32_t b)
{
    unsigned first = lock_of(a), second = lock_of(b);

    if (first > second) {
        unsigned swap = first;
        first = second;
        second = swap;
    }
    pthread_mutex_lock(&holdings->root_locks[first]);
    if (second != first)
        pthread_mutex_lock(&holdings->root_locks[second]);
}

void parts_unlock_roots(struct holdings *holdings, uint32_t a, uint32_t b)
{
    pthread_mutex_unlock(&holdings->root_locks[lock_of(a)]);
    if (lock_of(a) != lock_of(b))
        pthread_mutex_unlock(&holdings->root_locks[lock_of(b)]);
}

/* --- the driver's side --- */

static int rm_free(struct job *job, pid_t pid, struct nvos00 *call)
{
    return backend->perform(job->fd, pid, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), call);
}

int parts_rm_control(struct job *job, pid_t pid, struct nvos54 *call)
{
    return backend->perform(job->fd, pid, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), call);
}

int parts_rm_alloc(struct job *job, pid_t pid, struct nvos64 *call)
{
    return backend->perform(job->fd, pid, NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64), call);
}

bool parts_undo(struct job *job, pid_t pid, uint32_t root, uint32_t parent, uint32_t handle)
{
    struct nvos00 call = {.root = root, .parent = parent, .object = handle};

    return rm_free(job, pid, &call) == 0 && (call.status == NV_OK || call.status == NV_ERR_OBJECT_NOT_FOUND);
}

void parts_forget(uint32_t root, uint32_t handle)
{
    ledger_lock();
    const struct ledger_object *object = ledger_find(root, handle);
    int slot = object ? (int)object->tenant : -1;
    uint32_t channels = object ? tenants[slot].channels : 0;
    ledger_free(root, handle);
    bool fewer = object && tenants[slot].channels != channels;
    ledger_unlock();
    if (fewer)
        sched_wake();
}

void perform_take_back(struct job *job)
{
    const struct ledger_inflight *in = job->inflight;

    if (!in->root)
        return;
    parts_lock_roots(job->holdings, in->root, in->root);
    /* what can't be undone stays on the account until its client ends */
    if (job->fd >= 0 && parts_undo(job, in->pid, in->root, 0, in->handle))
        parts_forget(in->root, in->handle);
    parts_unlock_roots(job->holdings, in->root, in->root);
}

void parts_note_making(struct job *job, uint32_t root, uint32_t handle)
{
    job->inflight->handle = handle;
    __atomic_store_n(&job->inflight->root, root, __ATOMIC_RELEASE);
}

/* --- answers --- */

int parts_answer_status(const struct call *call, uint32_t offset, uint32_t status)
{
    return reach_write(call->tid, call->address + offset, &status, sizeof status) ? 0 : EFAULT;
}

static uint32_t status_of(enum reserve reserved)
{
    return reserved == RESERVE_OK ? NV_OK : reserved == RESERVE_TAKEN ? NV_ERR_INSERT_DUPLICATE_NAME : NV_ERR_NO_MEMORY;
}

/*
 * Bytes and channels lie on the tenant's own GPU: judged before, and asked again under the client's lock, for the
 * parent's number may have become another's. A device is nobody's GPU until the driver has made it.
 */
static bool is_in_place(const struct call *call, struct ledger_object *object)
{
    if (object->class == NV01_DEVICE_0)
        object->gpu = MAX_GPUS;
    return !(object->bytes || NV_CLASS_IS_CHANNEL(object->class)) || (int)object->gpu == tenants[call->slot].gpu;
}

/* One attempt; `status` is what the driver would say. A refusal is told of the last one alone. */
static enum reserve try_reserve(struct job *job, const struct call *call, uint32_t root, uint32_t parent,
                                uint32_t handle, uint32_t class, uint64_t bytes, bool last, uint32_t *status)
{
    struct ledger_object *object;

    ledger_lock();
    enum reserve reserved = job->holdings->ended
                                ? RESERVE_OVER_QUOTA
                                : ledger_reserve(call->slot, call->pid, root, parent, handle, class, bytes, &object);
    if (last && reserved == RESERVE_OVER_QUOTA && !job->holdings->ended)
        ledger_tell_refusal(call->slot, call->pid, root, bytes);
    *status = status_of(reserved);
    if (reserved == RESERVE_OK && !is_in_place(call, object)) {
        ledger_cancel(object);
        *status = NV_ERR_INVALID_OBJECT_PARENT;
    }
    ledger_unlock();
    return reserved;
}

/* Reserve under the tenant's quota, for something that the driver is about to be asked for. */
uint32_t parts_reserve(struct job *job, const struct call *call, uint32_t root, uint32_t parent, uint32_t handle,
                       uint32_t class, uint64_t bytes)
{
    uint32_t status;

    if (try_reserve(job, call, root, parent, handle, class, bytes, false, &status) == RESERVE_OVER_QUOTA) {
        /* a file that was closed without a word may hold what is missing */
        holdings_sweep(job->holdings, call->slot);
        try_reserve(job, call, root, parent, handle, class, bytes, true, &status);
    }
    if (status != NV_OK) /* nothing is being made: a successor must not unmake what has that number already */
        parts_note_making(job, 0, 0);
    return status;
}

/* The driver has spoken: keep what it made, or drop the reservation. False: it has to be undone. */
static bool settle(struct job *job, uint32_t root, uint32_t handle, bool made, uint64_t bytes, int gpu)
{
    bool fits = true;

    ledger_lock();
    struct ledger_object *object = ledger_find(root, handle);
    if (!object || job->holdings->ended) { /* the tenant was removed meanwhile */
        ledger_unlock();
        return !made;
    }
    if (gpu >= 0)
        object->gpu = (uint32_t)gpu;
    if (made)
        fits = ledger_commit(object, bytes);
    if (!made || !fits)
        ledger_cancel(object);
    ledger_unlock();
    return fits;
}

/* --- allocations --- */

uint32_t parts_free_number(void)
{
    static uint32_t last;

    return 0x5EED0000u | (__atomic_add_fetch(&last, 1, __ATOMIC_RELAXED) & 0xFFFF);
}

/* Where the new channel's ring is: the scheduler looks there for work. */
static void note_ring(const struct call *call, const struct nvos64 *mine, const unsigned char *params)
{
    uint32_t userd = 0;
    uint64_t offset = 0;

    if (mine->params) {
        memcpy(&userd, params + NV_CHANNEL_PARAMS_USERD_MEMORY, sizeof userd);
        memcpy(&offset, params + NV_CHANNEL_PARAMS_USERD_OFFSET, sizeof offset);
    }
    ledger_lock();
    struct ledger_object *channel = ledger_find(mine->root, mine->object);
    if (channel)
        ledger_note_ring(channel, userd, offset, call->descriptor);
    ledger_unlock();
}

/* Ask the driver for the object, and settle with the ledger. 0 or errno; the driver's status is in `mine`. */
static int alloc_tracked(struct job *job, const struct call *call, struct nvos64 *mine, void *params)
{
    struct nv_memory_allocation_params *memory = mine->class == NV01_MEMORY_LOCAL_USER ? params : NULL;
    bool counts = memory && nv_takes_video_memory(memory->attr, memory->flags);
    int gpu = -1; /* a device of a GPU that is not the guard's stays nobody's: nothing lies under it */

    if (mine->class == NV01_DEVICE_0)
        gpu = backend->gpu_of_device(job->fd, params);
    mine->status = parts_reserve(job, call, mine->root, mine->parent, mine->object, mine->class,
                                 counts ? memory->size : 0);
    if (mine->status != NV_OK)
        return 0;
    int rc = parts_rm_alloc(job, call->pid, mine);
    bool made = rc == 0 && mine->status == NV_OK;
    uint64_t bytes = made && counts && nv_takes_video_memory(memory->attr, memory->flags) ? memory->size : 0;
    if (!settle(job, mine->root, mine->object, made, bytes, gpu)) {
        parts_undo(job, call->pid, mine->root, mine->parent, mine->object);
        mine->status = NV_ERR_NO_MEMORY;
    } else if (made && NV_CLASS_IS_CHANNEL(mine->class)) {
        note_ring(call, mine, params);
    }
    return -rc;
}

static int perform_alloc(struct job *job, const struct call *call)
{
    unsigned char *before = job->scratch, *params = job->scratch + PARAMS_MAX;
    bool tracked = judge_is_tracked(call->alloc.class);
    struct nvos64 mine = call->alloc;
    size_t size = mine.params ? reach_read_some(call->tid, mine.params, before, CLASS_PARAMS_MAX) : 0;

    if (mine.params && !size)
        return parts_answer_status(call, call->alloc_status_offset, NV_ERR_INVALID_ADDRESS);
    memset(before + size, 0, CLASS_PARAMS_MAX - size);
    memcpy(params, before, CLASS_PARAMS_MAX);
    if (!mine.params && mine.class == NV01_MEMORY_LOCAL_USER)
        return parts_answer_status(call, call->alloc_status_offset, NV_ERR_INVALID_ARGUMENT);
    if (!mine.object)
        mine.object = parts_free_number();
    mine.params = mine.params ? (uintptr_t)params : 0;
    mine.rights = 0;
    parts_lock_roots(job->holdings, mine.root, mine.root);
    parts_note_making(job, mine.root, mine.object);
    int error = tracked ? alloc_tracked(job, call, &mine, params) : -parts_rm_alloc(job, call->pid, &mine);
    bool made = !error && mine.status == NV_OK;
    bool told = !error &&
                (mine.object == call->alloc.object || !made ||
                 reach_write(call->tid, call->address + offsetof(struct nvos64, object), &mine.object,
                             sizeof mine.object)) &&
                reach_write_changes(call->tid, call->alloc.params, before, params, size) &&
                reach_write(call->tid, call->address + call->alloc_status_offset, &mine.status, sizeof mine.status);
    if (made && !told) { /* the tenant will never learn the number */
        parts_undo(job, call->pid, mine.root, mine.parent, mine.object);
        parts_forget(mine.root, mine.object);
    }
    parts_unlock_roots(job->holdings, mine.root, mine.root);
    return error ? error : told ? 0 : EFAULT;
}

static uint64_t *heap_size(struct nvos32 *heap)
{
    size_t offset = heap->function == NVOS32_FUNCTION_ALLOC_SIZE ? NVOS32_ALLOC_SIZE_SIZE_OFFSET
                                                                 : NVOS32_ALLOC_SIZE_RANGE_SIZE_OFFSET;
    return (uint64_t *)(void *)((unsigned char *)heap + offset);
}

static int ask_heap(struct job *job, const struct call *call, struct nvos32 *heap)
{
    return backend->perform(job->fd, call->pid, NV_REQUEST(NV_ESC_RM_VID_HEAP_CONTROL, struct nvos32), heap);
}

static int answer_heap(const struct call *call, const struct nvos32 *heap, int error)
{
    if (error)
        return error;
    return reach_write_changes(call->tid, call->address, &call->args.heap, heap, sizeof *heap) ? 0 : EFAULT;
}

static int perform_heap_alloc(struct job *job, const struct call *call)
{
    struct nvos32 heap = call->args.heap;
    bool counts = nv_takes_video_memory(heap.attr, heap.flags);
    int error = 0;

    if (!(heap.flags & NVOS32_ALLOC_FLAGS_MEMORY_HANDLE_PROVIDED))
        heap.memory = parts_free_number();
    heap.flags |= NVOS32_ALLOC_FLAGS_MEMORY_HANDLE_PROVIDED;
    parts_lock_roots(job->holdings, heap.root, heap.root);
    parts_note_making(job, heap.root, heap.memory);
    uint32_t handle = heap.memory, status = parts_reserve(job, call, heap.root, heap.parent, handle,
                                                          NV01_MEMORY_LOCAL_USER, counts ? *heap_size(&heap) : 0);
    heap.status = status;
    if (status == NV_OK) {
        error = -ask_heap(job, call, &heap);
        bool made = !error && heap.status == NV_OK;
        uint64_t bytes = counts && nv_takes_video_memory(heap.attr, heap.flags) ? *heap_size(&heap) : 0;
        if (!settle(job, heap.root, handle, made, bytes, -1)) {
            parts_undo(job, call->pid, heap.root, heap.parent, handle);
            heap.status = NV_ERR_NO_MEMORY;
        }
    }
    int answered = answer_heap(call, &heap, error);
    if (answered && !error && heap.status == NV_OK) {
        parts_undo(job, call->pid, heap.root, heap.parent, handle);
        parts_forget(heap.root, handle);
    }
    parts_unlock_roots(job->holdings, heap.root, heap.root);
    return answered;
}

static int perform_heap(struct job *job, const struct call *call)
{
    struct nvos32 heap = call->args.heap;

    parts_lock_roots(job->holdings, heap.root, heap.root);
    int error = -ask_heap(job, call, &heap);
    if (!error && heap.status == NV_OK && heap.function == NVOS32_FUNCTION_FREE)
        parts_forget(heap.root, heap.memory);
    parts_unlock_roots(job->holdings, heap.root, heap.root);
    return answer_heap(call, &heap, error);
}

static int perform_free(struct job *job, const struct call *call)
{
    struct nvos00 mine = call->args.free;

    parts_lock_roots(job->holdings, mine.root, mine.root);
    int rc = rm_free(job, call->pid, &mine);
    bool client = mine.object == mine.root;
    if (rc == 0 && job->redoing && !client && mine.status == NV_ERR_OBJECT_NOT_FOUND) /* it had come that far */
        mine.status = NV_OK;
    if (rc == 0 && mine.status == NV_OK)
        parts_forget(mine.root, mine.object);
    parts_unlock_roots(job->holdings, mine.root, mine.root);
    return rc < 0 ? -rc : parts_answer_status(call, offsetof(struct nvos00, status), mine.status);
}

/* --- controls --- */

static void note_scheduled(const struct nvos54 *control)
{
    if (control->command != NVA06C_CTRL_CMD_GPFIFO_SCHEDULE && control->command != NVA06F_CTRL_CMD_GPFIFO_SCHEDULE)
        return;
    ledger_lock();
    bool any = ledger_note_scheduled(control->client, control->object);
    ledger_unlock();
    if (any)
        sched_wake();
}

static int perform_control(struct job *job, const struct call *call)
{
    struct nvos54 mine = call->args.control;
    unsigned char *before = job->scratch, *params = job->scratch + PARAMS_MAX;
    uint32_t size = mine.params ? mine.params_size : 0, offset = offsetof(struct nvos54, status);
    const struct param_pointers *pointers = params_pointers(mine.command);
    const struct param_descriptor *descriptor = params_descriptor(mine.command);
    struct piece pieces[PARAM_POINTERS_MAX];
    int count = 0, error;

    if (!reach_read(call->tid, mine.params, before, size))
        return parts_answer_status(call, offset, NV_ERR_INVALID_ADDRESS);
    memcpy(params, before, size);
    if (pointers && size)
        count = pieces_copy(call->tid, pointers, params, size, job->scratch + 2 * (size_t)PARAMS_MAX, pieces);
    if (count < 0 || (descriptor && size != descriptor->size))
        return parts_answer_status(call, offset, NV_ERR_INVALID_ARGUMENT);
    mine.params = size ? (uintptr_t)params : 0;
    if (descriptor)
        error = names_control(job, call, descriptor, &mine, params);
    else if (processes_asked(mine.command))
        error = processes_control(job, call, &mine, params);
    else
        error = -parts_rm_control(job, call->pid, &mine);
    if (error)
        return error;
    bool written = pieces_write(call->tid, params, pieces, count) &&
                   reach_write_changes(call->tid, call->args.control.params, before, params, size);
    if (mine.status == NV_OK)
        note_scheduled(&mine);
    return written ? parts_answer_status(call, offset, mine.status) : EFAULT;
}

int perform(struct job *job, struct call *call, const struct verdict *verdict)
{
    switch (verdict->kind) {
    case VERDICT_STATUS: return parts_answer_status(call, verdict->status_offset, verdict->status);
    case VERDICT_ERRNO: return verdict->error;
    case VERDICT_ROOT: return clients_perform_root(job, call);
    case VERDICT_ALLOC: return perform_alloc(job, call);
    case VERDICT_FREE: return perform_free(job, call);
    case VERDICT_CONTROL: return perform_control(job, call);
    case VERDICT_DUP: return names_dup(job, call);
    case VERDICT_HEAP_ALLOC: return perform_heap_alloc(job, call);
    case VERDICT_HEAP_FREE:
    case VERDICT_HEAP_ASK: return perform_heap(job, call);
    case VERDICT_CONTINUE: break;
    }
    return 0;
}
