#define _GNU_SOURCE
#include "clients.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "perform_parts.h"
#include "reach.h"
#include "util.h"

/* Is the client on this file? The driver says so: it answers a client's own file only. */
static bool is_on_file(struct job *job, pid_t pid, uint32_t root)
{
    uint32_t ids[NV0000_PROBED_IDS_WORDS];
    struct nvos54 question = client_question(root, ids);

    return parts_rm_control(job, pid, &question) == 0 && question.status == NV_OK;
}

/* The driver says that the client is on this tenant's file; a tenant that has ended claims nothing. */
static bool claim(struct job *job, const struct call *call, uint32_t root, uint32_t file)
{
    ledger_lock();
    bool claimed = !job->holdings->ended && ledger_claim_root(call->slot, call->pid, root);
    if (claimed && file)
        ledger_watch(ledger_find(root, root), file);
    ledger_unlock();
    return claimed;
}

static bool is_claimed(const struct call *call, uint32_t root)
{
    ledger_lock();
    const struct ledger_object *object = ledger_find(root, root);
    bool claimed = object && (int)object->tenant == call->slot && (backend->client_lives || ledger_file_of(object));
    ledger_unlock();
    return claimed;
}

struct known {
    uint32_t root, file;
};

/* The tenant's clients whose files are known. Returns their number, -1 when it has as many clients as it may. */
static int list_known(const struct call *call, struct known known[CLIENTS_MAX])
{
    int count = 0, clients = 0;

    ledger_lock();
    for (const struct ledger_object *root = ledger_first_root(call->slot); root; root = ledger_next_listed(root)) {
        if (IS_LEDGER_ROOT(root->root))
            continue;
        if (++clients == CLIENTS_MAX)
            break;
        if (ledger_file_of(root))
            known[count++] = (struct known){root->root, ledger_file_of(root)};
    }
    ledger_unlock();
    return clients == CLIENTS_MAX ? -1 : count;
}

/* Under the holdings' lock. A number for the file of this call, known from now on; 0: it can't be had. */
static uint32_t number_file(struct job *job)
{
    struct holdings *holdings = job->holdings;
    uint32_t number = ++holdings->last_file ? holdings->last_file : ++holdings->last_file;
    int error = files_add(&holdings->clients, job->fd, number);

    if (error == EEXIST) /* clients_admit()'s, or that of clients which are gone */
        error = files_retag(&holdings->clients, job->fd, number);
    if (error)
        say("a tenant's file can't be watched: %s", strerror(error));
    return error ? 0 : number;
}

/* Under the holdings' lock. A set can't be asked for a file's number: another client on the same file tells it. */
static uint32_t file_of_call(struct job *job, const struct call *call)
{
    struct known known[CLIENTS_MAX];
    int count = list_known(call, known);

    for (int i = 0; i < count; i++)
        if (is_on_file(job, call->pid, known[i].root))
            return known[i].file;
    return count < 0 ? 0 : number_file(job);
}

void clients_claim(struct job *job, const struct call *call)
{
    uint32_t root = judge_client(call);
    bool makes_root = (call->nr == NV_ESC_RM_ALLOC && NV_CLASS_IS_ROOT(call->args.alloc.class)) ||
                      call->nr == NV_ESC_RM_ALLOC_OBJECT;

    if (!root || makes_root || IS_LEDGER_ROOT(root) || is_claimed(call, root) || !is_on_file(job, call->pid, root))
        return;
    if (backend->client_lives) { /* it tells by itself */
        claim(job, call, root, 0);
        return;
    }
    /* one at a time: two new clients of one file must come to the same number */
    pthread_mutex_lock(&job->holdings->lock);
    uint32_t file = file_of_call(job, call);
    if (file)
        claim(job, call, root, file);
    pthread_mutex_unlock(&job->holdings->lock);
}

/*
 * A client has to be made by the kernel for the tenant: it is its maker's, for NVML, and the driver maps memory for
 * its maker alone. The shim has it made by a door that gives no memory, whatever a racing thread makes of the call. A
 * program without the shim comes by the common door: one that wins two races at once, for the arguments and for the
 * descriptor, would have memory that nobody counted. audit.c finds that out.
 */
bool clients_admit(struct job *job, const struct call *call)
{
    struct known known[CLIENTS_MAX];

    if (call->nr == NV_ESC_RM_ALLOC)
        __atomic_store_n(&job->holdings->unsure, true, __ATOMIC_RELAXED);
    if (backend->client_lives)
        return true;
    pthread_mutex_lock(&job->holdings->lock);
    int error = files_add(&job->holdings->clients, job->fd, 0); /* is there room? It gets its number with its client */
    pthread_mutex_unlock(&job->holdings->lock);
    return (error == 0 || error == EEXIST) && list_known(call, known) >= 0;
}

int clients_perform_root(struct job *job, const struct call *call)
{
    struct nvos64 mine = call->alloc;

    mine.params = mine.rights = 0;
    int rc = parts_rm_alloc(job, call->pid, &mine);
    if (rc < 0)
        return -rc;
    if (mine.status == NV_OK && !claim(job, call, mine.object, 0)) {
        parts_undo(job, call->pid, mine.object, 0, mine.object);
        mine.status = NV_ERR_INSUFFICIENT_RESOURCES;
    }
    if (reach_write(call->tid, call->address + offsetof(struct nvos64, object), &mine.object, sizeof mine.object))
        return parts_answer_status(call, call->alloc_status_offset, mine.status);
    parts_undo(job, call->pid, mine.object, 0, mine.object);
    parts_forget(mine.object, mine.object);
    return EFAULT;
}
