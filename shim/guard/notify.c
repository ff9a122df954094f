#define _GNU_SOURCE
#include "notify.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "answer.h"
#include "crew.h"
#include "sched.h"
#include "thread.h"
#include "util.h"

#define SWEEP_NS 1000000000ull        /* files are looked at so often unasked */
#define SOON_NS 50000000ull           /* while clients outlive their makers */
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

bool notify_trace;

static struct crew *crews[LEDGER_TENANTS]; /* main thread's */

enum event_kind { EVENT_BELL, EVENT_LISTENER, EVENT_MEMBER };
#define EVENT(kind, index) ((uint64_t)(kind) << 32 | (uint32_t)(index))

static bool watch(struct crew *crew, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(crew->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* vgpud holds a copy of every listener, so closing ours would leave epoll watching it under a number that is reused. */
static void unwatch(struct crew *crew, int fd)
{
    if (epoll_ctl(crew->epoll, EPOLL_CTL_DEL, fd, NULL) < 0)
        say("epoll_ctl EPOLL_CTL_DEL: %s", strerror(errno));
}

/* Under the crew's lock. */
static void listener_gone(struct crew *crew, int index)
{
    struct listener *listener = &crew->listeners[index];

    if (listener->fd < 0 || listener->gone)
        return;
    listener->gone = true;
    unwatch(crew, listener->fd);
}

static bool has_ended(struct crew *crew)
{
    ledger_lock();
    bool ended = crew->holdings.ended;
    ledger_unlock();
    return ended;
}

/* The housekeeper's alone: when it looked last, and whether clients outlive their makers. */
static void sweep(struct crew *crew)
{
    crew->orphans = holdings_sweep(&crew->holdings, crew->slot);
    crew->swept_ns = monotonic_ns();
}

static void member_exited(struct crew *crew, int index)
{
    pthread_mutex_lock(&crew->lock);
    members_remove(&crew->members, index);
    pthread_mutex_unlock(&crew->lock);
    sweep(crew);
}

/* --- receivers --- */

struct receiver {
    struct crew *crew;
    int listener, place, entry;
    bool first; /* of its listener: a predecessor may have left a call unanswered */
};

/* Under the crew's lock. */
static void start_receiver(struct crew *crew, int index, bool first);

static int take_entry(struct crew *crew)
{
    int entry = -1;

    for (int i = 0; i < LEDGER_INFLIGHT; i++)
        if (!crew->busy[i] && (entry < 0 || !ledger->inflight[crew->slot][i].notification.id))
            entry = i;
    crew->busy[entry] = true;
    return entry;
}

/* Nobody is left under the filter: newer kernels say so to those who wait, and would do so again at once. */
static bool is_hung_up(int fd)
{
    struct pollfd ended = {.fd = fd};
    return poll(&ended, 1, 0) == 1 && ended.revents & (POLLHUP | POLLERR | POLLNVAL);
}

static bool receive(struct receiver *receiver, struct job *job, int fd)
{
    struct crew *crew = receiver->crew;
    struct listener *listener = &crew->listeners[receiver->listener];
    struct ledger_inflight *in = job->inflight;

    memset(&in->notification, 0, sizeof in->notification);
    pthread_mutex_lock(&crew->lock);
    listener->waiting++;
    pthread_mutex_unlock(&crew->lock);
    /* ENOENT: the caller was killed before we got here; EINTR: a knock, or a stop and go */
    bool received = ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &in->notification) == 0;
    pthread_mutex_lock(&crew->lock);
    /* somebody has to wait for the next call while this one is answered */
    if (--listener->waiting == 0 && received && !listener->gone && listener->receivers < LISTENER_RECEIVERS &&
        crew->receivers < CREW_RECEIVERS)
        start_receiver(crew, receiver->listener, false);
    pthread_mutex_unlock(&crew->lock);
    if (!received)
        in->notification.id = 0;
    return received;
}

static void hang_up(struct receiver *receiver)
{
    pthread_mutex_lock(&receiver->crew->lock);
    listener_gone(receiver->crew, receiver->listener);
    pthread_mutex_unlock(&receiver->crew->lock);
}

static bool is_over(struct receiver *receiver)
{
    pthread_mutex_lock(&receiver->crew->lock);
    bool gone = receiver->crew->listeners[receiver->listener].gone;
    pthread_mutex_unlock(&receiver->crew->lock);
    return gone;
}

static void end_receiver(struct receiver *receiver)
{
    struct crew *crew = receiver->crew;
    struct listener *listener = &crew->listeners[receiver->listener];

    pthread_mutex_lock(&crew->lock);
    crew->busy[receiver->entry] = false;
    listener->threads[receiver->place] = 0;
    crew->receivers--;
    if (--listener->receivers == 0) { /* gone, and nobody uses it any more */
        close(listener->fd);
        listener->fd = -1;
    }
    pthread_mutex_unlock(&crew->lock); /* the housekeeper may free the crew from here on */
    free(receiver);
}

static void *receive_calls(void *argument)
{
    struct receiver *receiver = argument;
    struct crew *crew = receiver->crew;
    struct job job = {
        .holdings = &crew->holdings, .inflight = &ledger->inflight[crew->slot][receiver->entry], .fd = -1};
    int fd;

    pthread_mutex_lock(&crew->lock);
    crew->listeners[receiver->listener].threads[receiver->place] = gettid();
    fd = crew->listeners[receiver->listener].fd;
    pthread_mutex_unlock(&crew->lock);
    job.scratch = mmap(NULL, JOB_SCRATCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (job.scratch == MAP_FAILED)
        die_with_error("mmap");
    if (receiver->first)
        answer_leftovers(crew, &job, fd);
    while (!is_over(receiver)) {
        if (receive(receiver, &job, fd))
            answer_call(crew, &job, fd);
        else if (is_hung_up(fd))
            hang_up(receiver);
    }
    munmap(job.scratch, JOB_SCRATCH);
    end_receiver(receiver);
    return NULL;
}

static void start_receiver(struct crew *crew, int index, bool first)
{
    struct listener *listener = &crew->listeners[index];
    struct receiver *receiver = malloc(sizeof *receiver);
    int place = 0;

    if (!receiver)
        return; /* those that are there go on */
    while (listener->threads[place])
        place++;
    *receiver = (struct receiver){crew, index, place, take_entry(crew), first};
    listener->threads[place] = -1; /* taken */
    if (start_detached(receive_calls, receiver)) {
        listener->receivers++;
        crew->receivers++;
        return;
    }
    listener->threads[place] = 0;
    crew->busy[receiver->entry] = false;
    free(receiver);
}

/* --- keeping house --- */

/* A receiver waits in the kernel: a signal brings it back to see that it is over. */
static void knock(const struct listener *listener)
{
    for (int i = 0; i < LISTENER_RECEIVERS; i++)
        if (listener->threads[i] > 0)
            syscall(SYS_tgkill, getpid(), listener->threads[i], SIGUSR1);
}

static void on_knock(int signal) { (void)signal; }

static bool knock_at_the_gone(struct crew *crew)
{
    bool any = false;

    pthread_mutex_lock(&crew->lock);
    for (int i = 0; i < CREW_LISTENERS; i++)
        if (crew->listeners[i].fd >= 0 && crew->listeners[i].gone) {
            knock(&crew->listeners[i]);
            any = true;
        }
    pthread_mutex_unlock(&crew->lock);
    return any;
}

static void end_crew(struct crew *crew)
{
    members_close(&crew->members);
    cleanup_fd(&crew->epoll);
    cleanup_fd(&crew->bell);
    holdings_close(&crew->holdings);
    pthread_mutex_destroy(&crew->lock);
    pthread_mutex_destroy(&crew->making);
    free(crew);
}

/* What the driver gave and nobody counted can't be taken back but with its holders. */
static void check_account(struct crew *crew)
{
    pid_t members[CREW_PROCESSES];

    pthread_mutex_lock(&crew->lock);
    int count = members_list(&crew->members, members);
    pthread_mutex_unlock(&crew->lock);
    uint64_t excess = audit_tenant(&crew->audit, crew->slot, __atomic_load_n(&crew->holdings.unsure, __ATOMIC_RELAXED),
                                   members, count, monotonic_ns());

    if (!excess)
        return;
    say("tenant %s has %llu MiB of GPU memory that it was not given: its processes are killed", tenants[crew->slot].id,
        (unsigned long long)(excess >> 20));
    pthread_mutex_lock(&crew->lock);
    members_kill(&crew->members);
    pthread_mutex_unlock(&crew->lock);
}

static void *keep_house(void *argument)
{
    struct crew *crew = argument;
    bool knocking = false;

    while (!has_ended(crew)) {
        struct epoll_event event;
        int count = epoll_wait(crew->epoll, &event, 1,
                               (int)((crew->orphans || knocking || crew->audit.found ? SOON_NS : SWEEP_NS) / 1000000));
        if (count < 0 && errno != EINTR)
            die_with_error("epoll_wait");
        int index = count > 0 ? (int)(uint32_t)event.data.u64 : 0;
        switch (count > 0 ? (enum event_kind)(event.data.u64 >> 32) : EVENT_BELL) {
        case EVENT_BELL: break;
        case EVENT_LISTENER:
            pthread_mutex_lock(&crew->lock);
            if (crew->listeners[index & 0xFFFF].generation == (uint32_t)index >> 16)
                listener_gone(crew, index & 0xFFFF);
            pthread_mutex_unlock(&crew->lock);
            break;
        case EVENT_MEMBER: member_exited(crew, index); break;
        }
        knocking = knock_at_the_gone(crew);
        if (monotonic_ns() - crew->swept_ns >= (crew->orphans ? SOON_NS : SWEEP_NS))
            sweep(crew);
        check_account(crew);
    }
    pthread_mutex_lock(&crew->lock);
    for (int i = 0; i < CREW_LISTENERS; i++)
        listener_gone(crew, i);
    pthread_mutex_unlock(&crew->lock);
    /* one may be held by arguments that never come; its process was killed, so that they will not for long */
    for (useconds_t pause = 1000; knock_at_the_gone(crew); pause = pause < 1000000 ? 2 * pause : pause)
        usleep(pause);
    end_crew(crew);
    return NULL;
}

/* --- tenants --- */

bool notify_set_tenant(int slot)
{
    struct sigaction knocked = {.sa_handler = on_knock}; /* and no SA_RESTART */

    if (crews[slot])
        return true;
    sigaction(SIGUSR1, &knocked, NULL);
    struct crew *crew = calloc(1, sizeof *crew);
    if (!crew)
        return false;
    crew->slot = slot;
    for (int i = 0; i < CREW_LISTENERS; i++)
        crew->listeners[i].fd = -1;
    crew->epoll = epoll_create1(EPOLL_CLOEXEC);
    crew->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    crew->members.epoll = crew->epoll;
    crew->members.event = EVENT(EVENT_MEMBER, 0);
    pthread_mutex_init(&crew->lock, NULL);
    pthread_mutex_init(&crew->making, NULL);
    if (!holdings_open(&crew->holdings) || crew->epoll < 0 || crew->bell < 0 ||
        !watch(crew, crew->bell, EPOLLIN, EVENT(EVENT_BELL, 0))) {
        end_crew(crew);
        return false;
    }
    crews[slot] = crew;
    holdings_sweep(&crew->holdings, slot); /* what ended while no guard looked */
    /* processes of a predecessor's time: their end is to be noticed */
    pthread_mutex_lock(&crew->lock);
    ledger_lock();
    for (const struct ledger_object *root = ledger_first_root(slot); root; root = ledger_next_listed(root)) {
        struct member *maker = members_note(&crew->members, root->pid);
        if (maker)
            maker->uses_gpu |= !IS_MANAGED_ROOT(root->root);
    }
    ledger_unlock();
    pthread_mutex_unlock(&crew->lock);
    if (!start_detached(keep_house, crew))
        die_with_error("pthread_create");
    return true;
}

bool notify_note_process(int slot, pid_t pid)
{
    struct crew *crew = crews[slot];

    if (!crew)
        return false;
    pthread_mutex_lock(&crew->lock);
    bool noted = members_note(&crew->members, pid) != NULL;
    pthread_mutex_unlock(&crew->lock);
    return noted;
}

/* Under the crew's lock. False: there is no room, or no thread to be had. */
static bool listen_by(struct crew *crew, int fd)
{
    int i = 0;

    while (i < CREW_LISTENERS && crew->listeners[i].fd >= 0)
        i++;
    if (i == CREW_LISTENERS)
        return false;
    uint16_t generation = (uint16_t)(crew->listeners[i].generation + 1);
    crew->listeners[i] = (struct listener){.fd = fd, .generation = generation};
    /* its end, no more */
    bool watched = watch(crew, fd, 0, EVENT(EVENT_LISTENER, i | generation << 16));
    if (watched)
        start_receiver(crew, i, true);
    if (watched && crew->listeners[i].receivers)
        return true;
    if (watched)
        unwatch(crew, fd);
    crew->listeners[i].fd = -1;
    return false;
}

bool notify_add_listener(int slot, int fd, bool old)
{
    struct crew *crew = crews[slot];
    bool added = false;

    if (crew) {
        if (old)
            __atomic_store_n(&crew->shares, true, __ATOMIC_SEQ_CST);
        pthread_mutex_lock(&crew->lock);
        added = listen_by(crew, fd);
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
    members_kill(&crew->members);
    ledger_lock();
    crew->holdings.ended = true;
    ledger_unlock();
    if (eventfd_write(crew->bell, 1) < 0)
        say("eventfd: %s", strerror(errno));
    pthread_mutex_unlock(&crew->lock); /* the housekeeper may free the crew from here on */
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
                /* the driver may have got to it after all: it stays on the account until its client ends */
                if (object && object->state == OBJECT_RESERVED)
                    object->state = OBJECT_HELD;
                ledger_unlock();
                in->root = 0;
                in->notification.id = 0;
            }
            pthread_mutex_unlock(&crews[slot]->lock);
        }
}
