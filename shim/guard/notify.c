#define _GNU_SOURCE
#include "notify.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "backend.h"
#include "judge.h"
#include "ledger.h"
#include "perform.h"
#include "reach.h"
#include "sched.h"
#include "util.h"

#define WORKER_STACK (1u << 18)
#define SWEEP_NS 1000000000ull /* files are looked at so often unasked */
#define SOON_NS 50000000ull    /* while clients outlive their makers */
/*
 * After an answer the next call is looked for so long before the thread sleeps: one allocation is several calls, and
 * waking a thread costs more than answering.
 */
#define LINGER_NS 30000ull
#define LINGER_CALLS 16 /* then others of the tenant's listeners have their turn */

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

bool notify_trace;

/* A process that made a judged call: kept to notice its exit, and to take its descriptors. */
struct member {
    pid_t pid; /* 0: free */
    int pidfd;
};

struct listener {
    int fd;     /* -1: free */
    bool fresh; /* a predecessor may have left a call of it unanswered */
    pthread_mutex_t receiving;
};

struct crew {
    int slot, epoll, bell; /* bell: rung at the end */
    pthread_mutex_t lock;  /* over all below */
    struct member members[CREW_PROCESSES];
    struct listener listeners[CREW_LISTENERS];
    int member_end, workers, idle;
    uint64_t swept_ns;
    bool orphans;
    bool busy[LEDGER_INFLIGHT]; /* entries of ledger->inflight[slot] that a worker of ours uses */
    struct holdings holdings;
};

static struct crew *crews[LEDGER_TENANTS]; /* main thread's */

enum event_kind { EVENT_BELL, EVENT_LISTENER, EVENT_MEMBER };
#define EVENT(kind, index) ((uint64_t)(kind) << 32 | (uint32_t)(index))

static bool watch(struct crew *crew, int operation, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(crew->epoll, operation, fd, &event) == 0;
}

/* vgpud holds a copy of every listener, so closing ours would leave epoll watching it under a number that is reused. */
static void unwatch(struct crew *crew, int fd)
{
    if (epoll_ctl(crew->epoll, EPOLL_CTL_DEL, fd, NULL) < 0)
        say("epoll_ctl EPOLL_CTL_DEL: %s", strerror(errno));
    close(fd);
}

static bool has_ended(struct crew *crew)
{
    ledger_lock();
    bool ended = crew->holdings.ended;
    ledger_unlock();
    return ended;
}

/* --- members --- */

static struct member *find_member(struct crew *crew, pid_t pid)
{
    for (int i = 0; i < crew->member_end; i++)
        if (crew->members[i].pid == pid)
            return &crew->members[i];
    return NULL;
}

static struct member *add_member(struct crew *crew, pid_t pid)
{
    struct member *place = find_member(crew, 0);

    if (!place && crew->member_end < CREW_PROCESSES)
        place = &crew->members[crew->member_end++];
    CLEANUP_FD int pidfd = place ? reach_pidfd(pid) : -1;
    if (pidfd < 0 ||
        !watch(crew, EPOLL_CTL_ADD, pidfd, EPOLLIN | EPOLLONESHOT, EVENT(EVENT_MEMBER, place - crew->members)))
        return NULL;
    *place = (struct member){pid, pidfd};
    pidfd = -1; /* the table's now */
    return place;
}

/* The calling thread's process, and its descriptor `fd` taken; -1 when it is gone or the table is full. */
static pid_t member_of(struct crew *crew, pid_t tid, int fd, int *taken)
{
    pthread_mutex_lock(&crew->lock);
    struct member *member = find_member(crew, tid);
    pid_t pid = member ? tid : reach_process_of(tid);
    if (!member && pid > 0)
        member = find_member(crew, pid);
    if (!member && pid > 0)
        member = add_member(crew, pid);
    errno = ESRCH;
    *taken = member ? reach_descriptor(member->pidfd, pid, tid, fd) : -1;
    int error = errno;
    pthread_mutex_unlock(&crew->lock);
    errno = error;
    return member ? pid : -1;
}

static void sweep(struct crew *crew)
{
    bool orphans = holdings_sweep(&crew->holdings, crew->slot);

    pthread_mutex_lock(&crew->lock);
    crew->orphans = orphans;
    crew->swept_ns = monotonic_ns();
    pthread_mutex_unlock(&crew->lock);
}

static void member_exited(struct crew *crew, int index)
{
    pthread_mutex_lock(&crew->lock);
    struct member *member = &crew->members[index];
    if (member->pid) {
        unwatch(crew, member->pidfd);
        member->pid = 0;
    }
    pthread_mutex_unlock(&crew->lock);
    sweep(crew);
}

static void sweep_if_due(struct crew *crew)
{
    pthread_mutex_lock(&crew->lock);
    bool due = monotonic_ns() - crew->swept_ns >= (crew->orphans ? SOON_NS : SWEEP_NS);
    if (due)
        crew->swept_ns = monotonic_ns(); /* one worker does it */
    pthread_mutex_unlock(&crew->lock);
    if (due)
        sweep(crew);
}

/* --- answering --- */

static bool notification_valid(int listener, uint64_t id)
{
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

static void answer(struct job *job, int listener, int error, uint32_t flags)
{
    struct ledger_inflight *in = job->inflight;
    struct seccomp_notif_resp response = {.id = in->notification.id, .error = -error, .flags = flags};

    /* ENOENT: the caller was killed meanwhile; nothing to tell. */
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) < 0 && errno != ENOENT)
        say("answer to a tenant: %s", strerror(errno));
    in->root = 0;
    __atomic_store_n(&in->notification.id, 0, __ATOMIC_RELEASE);
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

/* The kernel makes the client, for only it can make it the tenant's. */
static struct verdict leave_to_kernel(struct job *job, const struct call *call)
{
    if (perform_admit_root(job, call))
        return (struct verdict){.kind = VERDICT_CONTINUE};
    return (struct verdict){
        .kind = VERDICT_STATUS, .status = NV_ERR_INSUFFICIENT_RESOURCES, .status_offset = call->alloc_status_offset};
}

/* Answer the notification in job->inflight. */
static void handle(struct crew *crew, struct job *job, int listener)
{
    const struct seccomp_notif *n = &job->inflight->notification;
    struct call call = {.slot = crew->slot, .tid = (pid_t)n->pid};
    CLEANUP_FD int fd = -1;

    call.pid = member_of(crew, call.tid, (int)n->data.args[0], &fd);
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
    call.file = fd < 0 ? FILE_OTHER : backend->kind(fd);
    if (call.file == FILE_OTHER) {
        /* Some other device's ioctl whose number looks like ours. */
        answer(job, listener, fd < 0 ? taking : 0, fd < 0 ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE);
        return;
    }
    job->fd = fd;
    if (call.file == FILE_CONTROL)
        perform_claim(job, &call);
    ledger_lock();
    struct verdict verdict = crew->holdings.ended ? (struct verdict){.kind = VERDICT_ERRNO, .error = EPERM}
                                                  : judge(&call);
    ledger_unlock();
    if (verdict.kind == VERDICT_ROOT && !backend->performs_roots)
        verdict = leave_to_kernel(job, &call);
    if (notify_trace)
        trace(&call, &verdict);
    error = verdict.kind == VERDICT_CONTINUE ? 0 : perform(job, &call, &verdict);
    /* let go first: who is told that its client is freed, or is killed, must not find the guard holding the file */
    cleanup_fd(&fd);
    fd = -1;
    answer(job, listener, error, verdict.kind == VERDICT_CONTINUE ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0);
}

/*
 * A predecessor was killed in mid-call. If the caller still waits, whatever was made for it is unmade, and the call
 * done anew. If it does not, it was answered, or died: see notify_abandon_leftovers().
 */
static void recover(struct crew *crew, struct job *job, int listener)
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
        member_of(crew, (pid_t)in->notification.pid, (int)in->notification.data.args[0], &fd);
        job->inflight = in;
        job->fd = fd >= 0 && backend->kind(fd) == FILE_CONTROL ? fd : -1;
        perform_take_back(job);
        in->root = 0;
        job->redoing = true;
        handle(crew, job, listener);
        job->redoing = false;
        job->inflight = own;
        pthread_mutex_lock(&crew->lock);
        crew->busy[i] = false;
        pthread_mutex_unlock(&crew->lock);
    }
}

static void listener_gone(struct crew *crew, int index)
{
    struct listener *listener = &crew->listeners[index];

    pthread_mutex_lock(&crew->lock);
    pthread_mutex_lock(&listener->receiving);
    if (listener->fd >= 0)
        unwatch(crew, listener->fd);
    listener->fd = -1;
    pthread_mutex_unlock(&listener->receiving);
    pthread_mutex_unlock(&crew->lock);
}

static void start_worker(struct crew *crew);

/* Looked for and received under a lock: a call that another worker took in between would leave this one waiting. */
static bool receive(struct crew *crew, struct job *job, int index)
{
    struct listener *listener = &crew->listeners[index];
    struct ledger_inflight *in = job->inflight;
    bool received = false;

    pthread_mutex_lock(&listener->receiving);
    struct pollfd waiting = {.fd = listener->fd, .events = POLLIN};
    if (listener->fd >= 0 && poll(&waiting, 1, 0) == 1 && waiting.revents & POLLIN) {
        memset(&in->notification, 0, sizeof in->notification);
        /* ENOENT: the caller was killed before we got here; EINTR: ask again next time round */
        received = ioctl(listener->fd, SECCOMP_IOCTL_NOTIF_RECV, &in->notification) == 0;
        if (!received)
            in->notification.id = 0;
    }
    pthread_mutex_unlock(&listener->receiving);
    return received;
}

static void call_for_help(struct crew *crew)
{
    pthread_mutex_lock(&crew->lock);
    if (!crew->idle && crew->workers < LEDGER_WORKERS)
        start_worker(crew);
    pthread_mutex_unlock(&crew->lock);
}

/* Calls of a listener, for as long as they come. Others of the crew may take the next while one is answered. */
static void listener_ready(struct crew *crew, struct job *job, int index)
{
    struct listener *listener = &crew->listeners[index];

    pthread_mutex_lock(&crew->lock);
    int fd = listener->fd;
    bool fresh = listener->fresh;
    listener->fresh = false;
    pthread_mutex_unlock(&crew->lock);
    if (fd < 0)
        return;
    if (fresh)
        recover(crew, job, fd);
    bool received = receive(crew, job, index);
    if (!watch(crew, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, EVENT(EVENT_LISTENER, index)))
        say("epoll_ctl EPOLL_CTL_MOD: %s", strerror(errno));
    uint64_t answered = monotonic_ns();
    for (int calls = 0; received || monotonic_ns() - answered < LINGER_NS;) {
        if (received) {
            call_for_help(crew);
            handle(crew, job, fd);
            answered = monotonic_ns();
            calls++;
        }
        if (calls == LINGER_CALLS)
            break;
        received = receive(crew, job, index);
    }
}

/* --- workers --- */

static int take_entry(struct crew *crew)
{
    int entry = -1;

    pthread_mutex_lock(&crew->lock);
    for (int i = 0; i < LEDGER_INFLIGHT; i++)
        if (!crew->busy[i] && (entry < 0 || !ledger->inflight[crew->slot][i].notification.id))
            entry = i;
    crew->busy[entry] = true;
    pthread_mutex_unlock(&crew->lock);
    return entry;
}

static void end_crew(struct crew *crew)
{
    for (int i = 0; i < CREW_LISTENERS; i++)
        cleanup_fd(&crew->listeners[i].fd);
    for (int i = 0; i < crew->member_end; i++)
        if (crew->members[i].pid)
            close(crew->members[i].pidfd);
    close(crew->epoll);
    close(crew->bell);
    holdings_close(&crew->holdings);
    pthread_mutex_destroy(&crew->lock);
    free(crew);
}

static void dispatch(struct crew *crew, struct job *job, const struct epoll_event *event)
{
    int index = (int)(uint32_t)event->data.u64;

    switch ((enum event_kind)(event->data.u64 >> 32)) {
    case EVENT_BELL: break;
    case EVENT_LISTENER:
        if (event->events & (EPOLLIN | EPOLLOUT))
            listener_ready(crew, job, index);
        else
            listener_gone(crew, index); /* EPOLLHUP: no process is left under the filter */
        break;
    case EVENT_MEMBER: member_exited(crew, index); break;
    }
}

static void *work(void *argument)
{
    struct crew *crew = argument;
    struct job job = {.holdings = &crew->holdings, .fd = -1};
    int entry = take_entry(crew);

    job.inflight = &ledger->inflight[crew->slot][entry];
    job.scratch = mmap(NULL, JOB_SCRATCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (job.scratch == MAP_FAILED)
        die_with_error("mmap");
    while (!has_ended(crew)) {
        struct epoll_event event;
        pthread_mutex_lock(&crew->lock);
        crew->idle++;
        int patience = (int)((crew->orphans ? SOON_NS : SWEEP_NS) / 1000000);
        pthread_mutex_unlock(&crew->lock);
        int count = epoll_wait(crew->epoll, &event, 1, patience);
        pthread_mutex_lock(&crew->lock);
        crew->idle--;
        pthread_mutex_unlock(&crew->lock);
        if (count < 0 && errno != EINTR)
            die_with_error("epoll_wait");
        if (count > 0)
            dispatch(crew, &job, &event);
        sweep_if_due(crew);
    }
    munmap(job.scratch, JOB_SCRATCH);
    pthread_mutex_lock(&crew->lock);
    bool last = --crew->workers == 0;
    pthread_mutex_unlock(&crew->lock);
    if (last)
        end_crew(crew);
    return NULL;
}

/* Under the crew's lock. */
static void start_worker(struct crew *crew)
{
    pthread_attr_t attributes;
    pthread_t thread;

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, WORKER_STACK);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attributes, work, crew) == 0)
        crew->workers++;
    else if (!crew->workers)
        die_with_error("pthread_create");
    pthread_attr_destroy(&attributes);
}

/* --- tenants --- */

static void free_the_dead(int slot)
{
    ledger_lock();
    for (struct ledger_object *root = ledger_first_root(slot), *next; root; root = next) {
        next = ledger_next_listed(root);
        if (!backend->client_lives && reach_has_exited(root->pid))
            ledger_free(root->root, root->root);
    }
    ledger_unlock();
}

bool notify_set_tenant(int slot)
{
    if (crews[slot])
        return true;
    struct crew *crew = calloc(1, sizeof *crew);
    if (!crew)
        return false;
    crew->slot = slot;
    for (int i = 0; i < CREW_LISTENERS; i++) {
        crew->listeners[i].fd = -1;
        pthread_mutex_init(&crew->listeners[i].receiving, NULL);
    }
    crew->epoll = epoll_create1(EPOLL_CLOEXEC);
    crew->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&crew->lock, NULL);
    if (!holdings_open(&crew->holdings) || crew->epoll < 0 || crew->bell < 0 ||
        !watch(crew, EPOLL_CTL_ADD, crew->bell, EPOLLIN, EVENT(EVENT_BELL, 0))) {
        end_crew(crew);
        return false;
    }
    crews[slot] = crew;
    free_the_dead(slot);
    /* processes of a predecessor's time: their end is to be noticed */
    pthread_mutex_lock(&crew->lock);
    ledger_lock();
    for (const struct ledger_object *root = ledger_first_root(slot); root; root = ledger_next_listed(root))
        if (!find_member(crew, root->pid))
            add_member(crew, root->pid);
    ledger_unlock();
    start_worker(crew);
    pthread_mutex_unlock(&crew->lock);
    return true;
}

bool notify_add_listener(int slot, int fd)
{
    struct crew *crew = crews[slot];
    bool added = false;

    if (crew) {
        pthread_mutex_lock(&crew->lock);
        for (int i = 0; i < CREW_LISTENERS && !added; i++) {
            if (crew->listeners[i].fd >= 0)
                continue;
            crew->listeners[i].fd = fd;
            crew->listeners[i].fresh = true;
            /* EPOLLOUT: a call was received and not answered, by a guard that was killed */
            added = watch(crew, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT | EPOLLONESHOT, EVENT(EVENT_LISTENER, i));
            if (!added) {
                crew->listeners[i].fd = -1;
                break;
            }
        }
        pthread_mutex_unlock(&crew->lock);
    }
    if (!added) {
        close(fd);
        return false;
    }
    /* the guard answers on the CPU that asked: no other is woken; where the kernel does not know it, all is as before
     */
    ioctl(fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
    ledger_lock();
    ledger_set_tier(slot, VGPU_TIER_GUARD);
    ledger_unlock();
    return true;
}

void notify_remove_tenant(int slot)
{
    struct crew *crew = crews[slot];

    if (!crew)
        return;
    crews[slot] = NULL;
    pthread_mutex_lock(&crew->lock);
    /* what it holds on the GPU would be nobody's, and be promised to another: it ends with its slice */
    for (int i = 0; i < crew->member_end; i++)
        if (crew->members[i].pid)
            syscall(SYS_pidfd_send_signal, crew->members[i].pidfd, SIGKILL, NULL, 0);
    ledger_lock();
    crew->holdings.ended = true;
    ledger_unlock();
    if (eventfd_write(crew->bell, 1) < 0)
        say("eventfd: %s", strerror(errno));
    pthread_mutex_unlock(&crew->lock); /* a worker may free the crew from here on */
}

int notify_listener_count(void)
{
    int count = 0;

    for (int slot = 0; slot < LEDGER_TENANTS; slot++)
        for (int i = 0; crews[slot] && i < CREW_LISTENERS; i++)
            count += crews[slot]->listeners[i].fd >= 0;
    return count;
}

void notify_each_listener(bool (*use)(int slot, int fd, void *context), void *context)
{
    for (int slot = 0; slot < LEDGER_TENANTS; slot++)
        for (int i = 0; crews[slot] && i < CREW_LISTENERS; i++) {
            int fd = crews[slot]->listeners[i].fd;
            if (fd >= 0 && !use(slot, fd, context))
                return;
        }
}

void notify_abandon_leftovers(void)
{
    for (int slot = 0; slot < LEDGER_TENANTS; slot++)
        for (int i = 0; crews[slot] && i < LEDGER_INFLIGHT; i++) {
            struct ledger_inflight *in = &ledger->inflight[slot][i];
            pthread_mutex_lock(&crews[slot]->lock);
            if (!crews[slot]->busy[i] && in->notification.id) {
                ledger_lock();
                struct ledger_object *object = in->root ? ledger_find(in->root, in->handle) : NULL;
                if (object && object->state == OBJECT_RESERVED)
                    ledger_cancel(object);
                ledger_unlock();
                in->notification.id = 0;
            }
            pthread_mutex_unlock(&crews[slot]->lock);
        }
}
