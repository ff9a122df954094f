#define _GNU_SOURCE
#include "answer.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "backend.h"
#include "clients.h"
#include "judge.h"
#include "reach.h"
#include "still.h"
#include "util.h"

#define TELL_NS 1000000000ull
#define MAKING_PAUSE_US 100
#define MAKING_PAUSES 1000 /* then its caller asks again: others of the slice need who waits here */

static bool notification_valid(int listener, uint64_t id)
{
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

/* False: nobody waits for it any more. */
static bool answer(struct job *job, int listener, int error, uint32_t flags)
{
    struct ledger_inflight *in = job->inflight;
    struct seccomp_notif_resp response = {.id = in->notification.id, .error = -error, .flags = flags};

    /* ENOENT: the caller was killed meanwhile; nothing to tell. */
    bool sent = ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) == 0;
    if (!sent && errno != ENOENT)
        say("answer to a tenant: %s", strerror(errno));
    in->root = 0;
    __atomic_store_n(&in->notification.id, 0, __ATOMIC_RELEASE);
    return sent;
}

/* Copies the call out of the tenant. 0, or the errno that the kernel would have given. */
static int copy_call(const struct seccomp_notif *n, struct call *call)
{
    struct nv_xfer xfer;

    call->nr = n->data.args[1] & 0xFF;
    call->size = _IOC_SIZE(n->data.args[1]);
    call->address = n->data.args[2];
    if (call->nr == NV_ESC_IOCTL_XFER_CMD) {
        if (call->size != sizeof xfer)
            return EINVAL;
        if (!reach_read(call->tid, call->address, &xfer, sizeof xfer))
            return EFAULT;
        call->wrapped = true;
        call->nr = xfer.command & 0xFF;
        call->size = xfer.size;
        call->address = xfer.params;
    }
    uint32_t wants = judge_wants(call->nr, call->size);
    return reach_read(call->tid, call->address, call->args.bytes, wants) ? 0 : EFAULT;
}

static void trace(const struct call *call, const struct verdict *verdict)
{
    static const char *const words[] = {"continue", "status", "errno",      "root",      "alloc",   "free",
                                        "control",  "dup",    "heap alloc", "heap free", "heap ask"};
    bool alloc = call->nr == NV_ESC_RM_ALLOC;

    say("pid %d client 0x%08x escape 0x%02x object 0x%08x class/command 0x%08x: %s 0x%x", call->pid, judge_client(call),
        call->nr, alloc ? call->alloc.object : call->args.control.object,
        alloc ? call->alloc.class : call->args.control.command, words[verdict->kind], verdict->status);
}

static struct verdict refuse_client(const struct call *call)
{
    bool object = call->nr == NV_ESC_RM_ALLOC_OBJECT;

    return (struct verdict){.kind = VERDICT_STATUS,
                            .status = NV_ERR_INSUFFICIENT_RESOURCES,
                            .status_offset = object ? offsetof(struct nvos05, status) : call->alloc_status_offset};
}

/* The kernel makes the client, for only it can make it the tenant's. */
static struct verdict leave_to_kernel(struct job *job, const struct call *call)
{
    return clients_admit(job, call) ? (struct verdict){.kind = VERDICT_CONTINUE} : refuse_client(call);
}

/* `fd`: the tenant's file. It is let go first: who is told that its client is freed, or is killed, must not find the
 * guard holding it. False: nobody waits for the answer any more. */
static bool finish(struct job *job, struct call *call, const struct verdict *verdict, int listener, int *fd)
{
    if (notify_trace)
        trace(call, verdict);
    int error = verdict->kind == VERDICT_CONTINUE ? 0 : perform(job, call, verdict);
    cleanup_fd(fd);
    *fd = -1;
    return answer(job, listener, error, verdict->kind == VERDICT_CONTINUE ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0);
}

static pid_t member_of(struct crew *crew, pid_t tid, int fd, int *taken, enum file_kind *kind)
{
    pthread_mutex_lock(&crew->lock);
    pid_t pid = members_take(&crew->members, tid, fd, taken, kind);
    int error = errno;
    pthread_mutex_unlock(&crew->lock);
    errno = error;
    return pid;
}

/* A client that is made by the door that gives memory too. */
struct making {
    struct crew *crew;
    struct job *job;
    struct call *call;
    int listener, *fd; /* the tenant's file, which is let go before the answer */
};

/* Between the first look and now its threads ran: is it the same call, on the same file? */
static bool is_as_judged(const struct making *making)
{
    const struct seccomp_notif *n = &making->job->inflight->notification;
    const struct call *judged = making->call;
    struct call call = {.tid = judged->tid};
    CLEANUP_FD int fd = -1;

    pid_t pid = member_of(making->crew, call.tid, judged->descriptor, &fd, &call.file);
    return pid == judged->pid && fd >= 0 && reach_same_file(fd, *making->fd) && copy_call(n, &call) == 0 &&
           call.nr == judged->nr && call.size == judged->size && call.address == judged->address &&
           call.wrapped == judged->wrapped && memcmp(&call.args, &judged->args, sizeof call.args) == 0 &&
           notification_valid(making->listener, n->id);
}

static void tell_refused(struct crew *crew, pid_t pid, const char *why)
{
    uint64_t now = monotonic_ns();

    if (now - __atomic_load_n(&crew->told_ns, __ATOMIC_RELAXED) < TELL_NS) /* a program may ask again and again */
        return;
    __atomic_store_n(&crew->told_ns, now, __ATOMIC_RELAXED);
    say("process %d makes a client without the shim, and %s: refused", pid, why);
}

/* True: the kernel makes it. */
static bool make_client(void *context, bool is_still)
{
    const struct making *making = context;
    struct verdict verdict = refuse_client(making->call);

    if (__atomic_load_n(&making->crew->shares, __ATOMIC_SEQ_CST))
        tell_refused(making->crew, making->call->pid, "others of its tenant may share its descriptors");
    else if (!is_still)
        tell_refused(making->crew, making->call->pid, "can't be held still meanwhile");
    else if (is_as_judged(making))
        verdict = leave_to_kernel(making->job, making->call);
    else
        tell_refused(making->crew, making->call->pid, "the call is not the one that it was");
    bool sent = finish(making->job, making->call, &verdict, making->listener, making->fd);
    return sent && verdict.kind == VERDICT_CONTINUE;
}

/* One at a time: two callers of one process would wait for each other. False: ask again. */
static bool take_turn(struct crew *crew, pid_t pid)
{
    for (int pause = 0; pthread_mutex_trylock(&crew->making) != 0; pause++) {
        if (__atomic_load_n(&crew->maker, __ATOMIC_RELAXED) == pid || pause == MAKING_PAUSES)
            return false;
        usleep(MAKING_PAUSE_US);
    }
    __atomic_store_n(&crew->maker, pid, __ATOMIC_RELAXED);
    return true;
}

/* The kernel reads the call again, so nobody may change it meanwhile. */
static void let_make_client(struct making *making)
{
    struct crew *crew = making->crew;
    bool done = false;

    if (__atomic_load_n(&crew->shares, __ATOMIC_SEQ_CST)) {
        make_client(making, false);
        return;
    }
    if (take_turn(crew, making->call->pid)) {
        /* its number may have become another's while it waited */
        if (notification_valid(making->listener, making->job->inflight->notification.id))
            done = still_while(making->call->pid, making->call->tid, make_client, making);
        __atomic_store_n(&crew->maker, 0, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&crew->making);
    }
    if (!done)
        answer(making->job, making->listener, EAGAIN, 0);
}

void answer_call(struct crew *crew, struct job *job, int listener)
{
    const struct seccomp_notif *n = &job->inflight->notification;

    if (n->data.nr == SYS_clone) { /* of a process that shares its maker's descriptors: it is told by a register */
        __atomic_store_n(&crew->shares, true, __ATOMIC_SEQ_CST);
        answer(job, listener, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
        return;
    }
    struct call call = {.slot = crew->slot, .tid = (pid_t)n->pid, .descriptor = (int)n->data.args[0]};
    CLEANUP_FD int fd = -1;

    call.pid = member_of(crew, call.tid, call.descriptor, &fd, &call.file);
    int taking = errno, error = call.pid < 0 ? EAGAIN : copy_call(n, &call);
    /* The caller may be gone and its number another process' by now: ask before trusting what was read. */
    if (!notification_valid(listener, n->id)) {
        __atomic_store_n(&job->inflight->notification.id, 0, __ATOMIC_RELEASE);
        return;
    }
    if (error) {
        answer(job, listener, error, 0);
        return;
    }
    job->inflight->pid = call.pid;
    if (call.file == FILE_OTHER) {
        bool harmless = fd >= 0 && judge_is_harmless_elsewhere(n->data.args[1] & 0xFF, _IOC_SIZE(n->data.args[1]));
        answer(job, listener, fd < 0 ? taking : harmless ? 0 : ENOTTY, harmless ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0);
        return;
    }
    job->fd = fd;
    if (call.file == FILE_CONTROL && !clients_claim(job, &call)) {
        answer(job, listener, EAGAIN, 0);
        return;
    }
    ledger_lock();
    struct verdict verdict = crew->holdings.ended ? (struct verdict){.kind = VERDICT_ERRNO, .error = EPERM}
                                                  : judge(&call);
    ledger_unlock();
    if (verdict.kind == VERDICT_ROOT && !backend->performs_roots) {
        let_make_client(&(struct making){crew, job, &call, listener, &fd});
        return;
    }
    if (verdict.kind == VERDICT_CONTINUE)
        verdict = leave_to_kernel(job, &call);
    finish(job, &call, &verdict, listener, &fd);
}

/*
 * A predecessor was killed in mid-call. If the caller still waits, whatever was made for it is unmade, and the call
 * done anew. If it does not, it was answered, or died: see notify_abandon_leftovers().
 */
void answer_leftovers(struct crew *crew, struct job *job, int listener)
{
    struct ledger_inflight *own = job->inflight;

    for (int i = 0; i < LEDGER_INFLIGHT; i++) {
        struct ledger_inflight *in = &ledger->inflight[crew->slot][i];
        pthread_mutex_lock(&crew->lock);
        bool left = !crew->busy[i] && in->notification.id && notification_valid(listener, in->notification.id);
        if (left)
            crew->busy[i] = true;
        pthread_mutex_unlock(&crew->lock);
        if (!left)
            continue;
        CLEANUP_FD int fd = -1;
        enum file_kind kind;
        member_of(crew, (pid_t)in->notification.pid, (int)in->notification.data.args[0], &fd, &kind);
        job->inflight = in;
        job->fd = kind == FILE_CONTROL ? fd : -1;
        perform_take_back(job);
        in->root = 0;
        job->redoing = true;
        answer_call(crew, job, listener);
        job->redoing = false;
        job->inflight = own;
        pthread_mutex_lock(&crew->lock);
        crew->busy[i] = false;
        pthread_mutex_unlock(&crew->lock);
    }
}
