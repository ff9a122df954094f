#define _GNU_SOURCE
#include "names.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "params.h"
#include "perform_parts.h"
#include "reach.h"
#include "util.h"

/* Another name takes no bytes of its own. Under the locks of both roots. */
static uint32_t reserve_twin(struct job *job, const struct call *call, uint32_t root, uint32_t parent, uint32_t handle)
{
    return parts_reserve(job, call, root, parent, handle, NV01_MEMORY_LOCAL_USER, 0);
}

static void settle_twin(struct job *job, uint32_t root, uint32_t handle, uint32_t source_root, uint32_t source)
{
    ledger_lock();
    struct ledger_object *object = ledger_find(root, handle), *of = ledger_find(source_root, source);
    if (object && of && !job->holdings->ended)
        ledger_join_twins(object, of);
    ledger_unlock();
}

static bool is_memory(uint32_t root, uint32_t handle)
{
    ledger_lock();
    const struct ledger_object *object = ledger_find(root, handle);
    bool memory = object && object->class == NV01_MEMORY_LOCAL_USER;
    ledger_unlock();
    return memory;
}

int names_dup(struct job *job, const struct call *call)
{
    struct nvos55 mine = call->args.dup;
    int rc = 0;

    if (!mine.object)
        mine.object = parts_free_number();
    parts_lock_roots(job->holdings, mine.client, mine.client_source);
    parts_note_making(job, mine.client, mine.object);
    bool memory = is_memory(mine.client_source, mine.object_source);
    mine.status = memory ? reserve_twin(job, call, mine.client, mine.parent, mine.object) : NV_OK;
    if (mine.status == NV_OK) {
        rc = backend->perform(job->fd, call->pid, NV_REQUEST(NV_ESC_RM_DUP_OBJECT, struct nvos55), &mine);
        if (memory && rc == 0 && mine.status == NV_OK)
            settle_twin(job, mine.client, mine.object, mine.client_source, mine.object_source);
        else if (memory)
            parts_forget(mine.client, mine.object);
    }
    parts_unlock_roots(job->holdings, mine.client, mine.client_source);
    if (rc < 0)
        return -rc;
    return reach_write_changes(call->tid, call->address, &call->args.dup, &mine, sizeof mine) ? 0 : EFAULT;
}

static void watch(uint32_t number)
{
    ledger_lock();
    struct ledger_object *root = ledger_find(number, number);
    if (root)
        ledger_watch(root, number);
    ledger_unlock();
}

static uint32_t new_export_number(struct job *job, const struct call *call, int file)
{
    static uint32_t last;
    uint32_t number;

    ledger_lock();
    do /* a predecessor gave numbers too */
        number = EXPORT_ROOTS | (++last & 0x0FFFFFFF);
    while (ledger_find(number, number));
    bool claimed = !job->holdings->ended && ledger_claim_root(call->slot, call->pid, number);
    ledger_unlock();
    if (!claimed)
        return 0;
    if (files_add(&job->holdings->exports, file, number) == 0) {
        watch(number);
        return number;
    }
    parts_forget(number, number);
    return 0;
}

/* The number under which a file's exported memory is kept; 0: the file holds none of this tenant's, nor can it. */
static uint32_t export_number(struct job *job, const struct call *call, int file, enum param_file use)
{
    pthread_mutex_lock(&job->holdings->lock);
    uint32_t number = 0;
    bool known = files_tag(&job->holdings->exports, file, &number);
    if (known && !number && use == FILE_EXPORTS)
        number = new_export_number(job, call, file);
    pthread_mutex_unlock(&job->holdings->lock);
    return number;
}

/* Which names an export or import adds, and of what: false for what is no memory of the ledger. */
static bool name_added(const struct carried *carried, enum param_file use, uint32_t client, uint32_t number, uint32_t i,
                       struct channel *name, struct channel *source)
{
    const struct channel in_file = {number, carried->index + i + 1}, in_client = {client, carried->handles[i]};

    *name = use == FILE_EXPORTS ? in_file : in_client;
    *source = use == FILE_EXPORTS ? in_client : in_file;
    return is_memory(source->root, source->handle);
}

static void forget_names(const struct carried *carried, enum param_file use, uint32_t client, uint32_t number,
                         uint32_t count)
{
    struct channel name, source;

    for (uint32_t i = 0; i < count; i++)
        if (name_added(carried, use, client, number, i, &name, &source))
            parts_forget(name.root, name.handle);
}

/* Room for the names, before the driver is asked: what is in a file holds the memory, whatever becomes of the others.
 */
static uint32_t reserve_names(struct job *job, const struct call *call, const struct carried *carried,
                              enum param_file use, uint32_t number)
{
    uint32_t client = call->args.control.client;
    struct channel name, source;

    for (uint32_t i = 0; i < carried->count; i++) {
        if (!name_added(carried, use, client, number, i, &name, &source))
            continue;
        uint32_t status = reserve_twin(job, call, name.root, use == FILE_EXPORTS ? number : carried->parent,
                                       name.handle);
        if (status != NV_OK) {
            forget_names(carried, use, client, number, i);
            return status;
        }
    }
    return NV_OK;
}

static void settle_names(struct job *job, const struct carried *carried, enum param_file use, uint32_t client,
                         uint32_t number)
{
    struct channel name, source;

    for (uint32_t i = 0; i < carried->count; i++)
        if (name_added(carried, use, client, number, i, &name, &source))
            settle_twin(job, name.root, name.handle, source.root, source.handle);
}

static void control_as_user(struct job *job, const struct call *call, struct nvos54 *mine, enum param_file use,
                            uint32_t number, const struct carried *carried)
{
    parts_lock_roots(job->holdings, mine->client, number);
    mine->status = use == FILE_ASKED ? NV_OK : reserve_names(job, call, carried, use, number);
    if (mine->status == NV_OK) {
        mine->status = NV_ERR_INSUFFICIENT_PERMISSIONS;
        /* the driver compares the caller's user with the client's */
        if (reach_be_user_of(call->tid) && parts_rm_control(job, call->pid, mine) < 0)
            mine->status = NV_ERR_OPERATING_SYSTEM;
        reach_be_oneself();
        if (use != FILE_ASKED && mine->status == NV_OK)
            settle_names(job, carried, use, mine->client, number);
        else if (use != FILE_ASKED)
            forget_names(carried, use, mine->client, number, carried->count);
    }
    parts_unlock_roots(job->holdings, mine->client, number);
}

int names_control(struct job *job, const struct call *call, const struct param_descriptor *spec, struct nvos54 *mine,
                  unsigned char *params)
{
    struct carried carried;
    int32_t theirs, ours;
    uint32_t number = 0;

    memcpy(&theirs, params + spec->offset, sizeof theirs);
    CLEANUP_FD int pidfd = reach_pidfd(call->pid);
    CLEANUP_FD int thread = call->tid == call->pid ? -1 : reach_thread(call->tid);
    CLEANUP_FD int file = theirs < 0 || pidfd < 0 ? -1 : reach_descriptor(pidfd, call->pid, call->tid, thread, theirs);
    if (file < 0 || backend->kind(file) != FILE_CONTROL) {
        mine->status = NV_ERR_INVALID_ARGUMENT;
        return 0;
    }
    ours = file;
    memcpy(params + spec->offset, &ours, sizeof ours);
    if (spec->use != FILE_ASKED && params_carried(mine->command, params, &carried))
        number = export_number(job, call, file, spec->use);
    if (spec->use != FILE_ASKED && !number) /* another tenant's memory, or more than can be kept */
        mine->status = NV_ERR_INSUFFICIENT_PERMISSIONS;
    else
        control_as_user(job, call, mine, spec->use, number, &carried);
    memcpy(params + spec->offset, &theirs, sizeof theirs);
    return 0;
}
