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

/* The number of the file that the client was claimed on, 1 where files are not counted; 0: it is not claimed, or a
 * predecessor's. */
static uint32_t claimed_on(const struct call *call, uint32_t root)
{
    ledger_lock();
    const struct ledger_object *object = ledger_find(root, root);
    bool own = object && (int)object->tenant == call->slot;
    uint32_t file = !own ? 0 : backend->client_lives ? 1 : ledger_file_of(object);
    ledger_unlock();
    return file;
}

static int count_clients(const struct call *call)
{
    int count = 0;

    ledger_lock();
    for (const struct ledger_object *root = ledger_first_root(call->slot); root; root = ledger_next_listed(root))
        count += !IS_LEDGER_ROOT(root->root);
    ledger_unlock();
    return count;
}

/* In a file's number: its first client was asked for by the door that gives memory too. It is to have no other. */
#define COMMON_DOOR 0x80000000u

/* Under the holdings' lock: a number for the file of this call, which has none. False: not to be had now. */
static bool give_number(struct job *job, uint32_t kind, uint32_t *number)
{
    struct holdings *holdings = job->holdings;

    holdings->last_file = holdings->last_file % (COMMON_DOOR - 2) + 1; /* never FILES_MARK */
    *number = holdings->last_file | kind;
    int error = files_add(&holdings->clients, job->fd, *number);
    if (error)
        say("a tenant's file can't be watched: %s", strerror(error));
    return error == 0;
}

/* Under the holdings' lock: the number of the file of this call, a new one if it has none. False: not to be had now. */
static bool number_of_file(struct job *job, uint32_t *number)
{
    return files_tag(&job->holdings->clients, job->fd, number) && (*number || give_number(job, 0, number));
}

/* Is a client on the file that a predecessor knew, and that was not heard of since? */
static bool has_older_client(struct job *job, const struct call *call)
{
    uint32_t roots[CLIENTS_MAX];
    int count = 0;

    ledger_lock();
    for (const struct ledger_object *root = ledger_first_root(call->slot); root && count < CLIENTS_MAX;
         root = ledger_next_listed(root))
        if (!IS_LEDGER_ROOT(root->root) && !ledger_file_of(root))
            roots[count++] = root->root;
    ledger_unlock();
    for (int i = 0; i < count; i++)
        if (is_on_file(job, call->pid, roots[i]))
            return true;
    return false;
}

/*
 * The number of a file that may have a client by that door. The kernel reads the call again, whenever the caller lets
 * it: so by the common door only a file that has no client, nor gets another, for the call could be one for memory.
 */
static bool number_for_client(struct job *job, const struct call *call, uint32_t *number)
{
    if (call->nr != NV_ESC_RM_ALLOC)
        return number_of_file(job, number) && !(*number & COMMON_DOOR);
    return files_tag(&job->holdings->clients, job->fd, number) && !*number && !has_older_client(job, call) &&
           give_number(job, COMMON_DOOR, number);
}

/* Under the holdings' lock. */
static void settle(struct holdings *holdings, uint32_t file)
{
    for (int i = 0; i < holdings->unsettled_count; i++)
        if (holdings->unsettled[i] == file) {
            holdings->unsettled[i] = holdings->unsettled[holdings->unsettled_count - 1];
            __atomic_sub_fetch(&holdings->unsettled_count, 1, __ATOMIC_SEQ_CST);
            return;
        }
}

/*
 * A tenant may name the number of a client that it makes, one that it had on a file that is closed by now: the account
 * must not take the new one for the old, which the next sweep gives back. So as long as a client was let be made whose
 * number nobody has seen, those that are known have to be on the file that they are known on. Under the holdings' lock.
 */
static bool is_still_there(const struct call *call, uint32_t root, uint32_t known, uint32_t here)
{
    if (known == here)
        return true;
    ledger_lock();
    const struct ledger_object *object = ledger_find(root, root);
    if (object && (int)object->tenant == call->slot && ledger_file_of(object) == known)
        ledger_free(root, root);
    ledger_unlock();
    return false;
}

/* Under the holdings' lock: one at a time, for two new clients of one file have to come to the same number. */
static bool claim_on_file(struct job *job, const struct call *call, uint32_t root, uint32_t known)
{
    uint32_t here;

    if (!number_of_file(job, &here))
        return false;
    if ((known && is_still_there(call, root, known, here)) || count_clients(call) >= CLIENTS_MAX)
        return true;
    if (claim(job, call, root, here))
        settle(job->holdings, here);
    return true;
}

bool clients_claim(struct job *job, const struct call *call)
{
    uint32_t root = judge_client(call);
    bool makes_root = (call->nr == NV_ESC_RM_ALLOC && NV_CLASS_IS_ROOT(call->args.alloc.class)) ||
                      call->nr == NV_ESC_RM_ALLOC_OBJECT;

    if (!root || makes_root || IS_LEDGER_ROOT(root))
        return true;
    uint32_t known = claimed_on(call, root);
    bool doubtful = !backend->client_lives && __atomic_load_n(&job->holdings->unsettled_count, __ATOMIC_SEQ_CST);
    if ((known && !doubtful) || !is_on_file(job, call->pid, root))
        return true;
    if (backend->client_lives) { /* it tells by itself */
        claim(job, call, root, 0);
        return true;
    }
    pthread_mutex_lock(&job->holdings->lock);
    bool certain = claim_on_file(job, call, root, known);
    pthread_mutex_unlock(&job->holdings->lock);
    return certain;
}

/*
 * A client has to be made by the kernel for the tenant: it is its maker's, for NVML, and the driver maps memory for
 * its maker alone. The shim has it made by a door that gives no memory, whatever a racing thread makes of the call. A
 * program without the shim comes by the common door, once for each file that it opens: a call that turned into one for
 * memory finds no client on that file to give it to. One that has turned the descriptor into another file's as well
 * would have memory that nobody counted: so the process is held still meanwhile, see still.h.
 */
bool clients_admit(struct job *job, const struct call *call)
{
    struct holdings *holdings = job->holdings;
    uint32_t file;

    if (call->nr == NV_ESC_RM_ALLOC)
        __atomic_store_n(&holdings->unsure, true, __ATOMIC_RELAXED);
    if (backend->client_lives)
        return true;
    if (__atomic_load_n(&holdings->unsettled_count, __ATOMIC_SEQ_CST) == HOLDINGS_UNSETTLED)
        holdings_sweep(holdings, call->slot);
    pthread_mutex_lock(&holdings->lock);
    bool admitted = holdings->unsettled_count < HOLDINGS_UNSETTLED && count_clients(call) < CLIENTS_MAX &&
                    number_for_client(job, call, &file);
    if (admitted) {
        holdings->unsettled[holdings->unsettled_count] = file;
        __atomic_add_fetch(&holdings->unsettled_count, 1, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&holdings->lock);
    return admitted;
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
