/*
 * ptrace, of a moment: each other thread is stopped, the caller is told to stop when its call is done. A thread of the
 * guard's own does it, for the kernel lets go of everything that it holds when it ends, whatever became of the process.
 *
 * Threads are all who share the caller's descriptors, or the guard knows better: see SHARED_DESCRIPTORS in run.c.
 */
#define _GNU_SOURCE
#include "still.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

#include "reach.h"
#include "util.h"

#define PATIENCE_NS 2000000000ull
#define PAUSE_MIN_US 20
#define PAUSE_MAX_US 1000

struct held {
    pid_t tid;
    bool stopped;
};

struct still {
    pid_t pid, tid;
    bool (*act)(void *context, bool is_still);
    void *context;
    bool left;   /* the caller is not in its call any more */
    bool acting; /* read by who started the holder */
    struct held *others;
    int count, room;
};

/* Before Linux 5.19 the caller would leave its call at once, to make it again when it is let go. */
static bool kernel_can(void)
{
    struct utsname name;
    int major = 0, minor = 0;

    return uname(&name) == 0 && sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
           (major > 5 || (major == 5 && minor >= 19));
}

/* A first thread that has ended is in the list until the last one ends. */
static bool has_ended(pid_t tid)
{
    char path[64], text[512];

    snprintf(path, sizeof path, "/proc/%d/stat", tid);
    FILE *stat = fopen(path, "re");
    if (!stat)
        return errno == ENOENT;
    errno = 0;
    bool read = fgets(text, sizeof text, stat);
    bool gone = !read && errno == ESRCH;
    fclose(stat);
    const char *state = read ? strrchr(text, ')') : NULL;
    return gone || (state && (state[2] == 'Z' || state[2] == 'X'));
}

static struct held *find(struct still *still, pid_t tid)
{
    for (int i = 0; i < still->count; i++)
        if (still->others[i].tid == tid)
            return &still->others[i];
    return NULL;
}

static bool add(struct still *still, pid_t tid)
{
    if (still->count == still->room) {
        int room = still->room ? 2 * still->room : 64;
        struct held *larger = realloc(still->others, (size_t)room * sizeof *larger);
        if (!larger)
            return false;
        still->others = larger;
        still->room = room;
    }
    still->others[still->count++] = (struct held){.tid = tid};
    return true;
}

/* From now on it is told of, and stops when it can. */
static bool seize(pid_t tid)
{
    return ptrace(PTRACE_SEIZE, tid, NULL, NULL) == 0 &&
           (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) == 0 || errno == ESRCH);
}

static void note(struct still *still, pid_t tid, int status)
{
    struct held *other = find(still, tid);
    /* on the way to its stop it gets a signal, which would be lost when it is let go */
    int signal = WIFSTOPPED(status) && status >> 16 != PTRACE_EVENT_STOP ? WSTOPSIG(status) : 0;

    if (tid == still->tid) {
        still->left = true;
        if (signal)
            ptrace(PTRACE_DETACH, tid, NULL, (uintptr_t)signal);
    } else if (signal) {
        ptrace(PTRACE_CONT, tid, NULL, (uintptr_t)signal); /* the stop is before it runs on */
    } else if (other && WIFSTOPPED(status)) {
        other->stopped = true;
    } else if (other) { /* forgotten: its number may be another's by now */
        *other = still->others[--still->count];
    }
}

/* Of any of them, for those who have ended have to be heard of before their first thread is. `flags`: WNOHANG or 0. */
static bool take_event(struct still *still, int flags)
{
    int status;
    pid_t tid;

    do
        tid = waitpid(-1, &status, __WALL | __WNOTHREAD | flags);
    while (tid < 0 && errno == EINTR);
    if (tid <= 0)
        return false;
    note(still, tid, status);
    return true;
}

/* False: one is there and can't be held, or it takes too long. */
static bool seize_the_rest(struct still *still, uint64_t end)
{
    char path[64];
    bool able = true;

    snprintf(path, sizeof path, "/proc/%d/task", still->pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        return false;
    for (const struct dirent *entry; able && (entry = readdir(tasks));) {
        pid_t tid = (pid_t)atoi(entry->d_name);
        if (tid <= 0 || tid == still->tid || find(still, tid))
            continue;
        able = monotonic_ns() < end && (seize(tid) ? add(still, tid) : errno == ESRCH || has_ended(tid));
    }
    closedir(tasks);
    return able;
}

/*
 * Does nobody run? The list of threads may miss one that was made by one that was just ending: their number does not.
 * A first thread that has ended is counted, and does not tell.
 */
static bool all_stopped(struct still *still)
{
    int stopped = 1; /* the caller */
    const struct held *first = find(still, still->pid);

    for (int i = 0; i < still->count; i++)
        stopped += still->others[i].stopped;
    if (still->pid != still->tid && !(first && first->stopped))
        stopped += has_ended(still->pid);
    return stopped == reach_threads_of(still->pid);
}

/* The caller is to wait for its answer meanwhile. */
static bool stop_all(struct still *still)
{
    uint64_t end = monotonic_ns() + PATIENCE_NS;

    for (useconds_t pause = PAUSE_MIN_US; !still->left; pause = pause < PAUSE_MAX_US ? 2 * pause : pause) {
        if (monotonic_ns() >= end || !seize_the_rest(still, end))
            return false;
        while (take_event(still, WNOHANG))
            ;
        if (!still->left && all_stopped(still))
            return true;
        usleep(pause);
    }
    return false;
}

static void *hold(void *argument)
{
    struct still *still = argument;

    bool stopped = seize(still->tid) && stop_all(still);
    __atomic_store_n(&still->acting, true, __ATOMIC_SEQ_CST);
    if (still->act(still->context, stopped))
        while (!still->left && take_event(still, 0))
            ;
    return NULL; /* all are let go */
}

/* One that becomes another program keeps the holder waiting, and waits itself for the threads that are held. */
static void join(struct still *still, pthread_t holder, int pidfd)
{
    struct timespec end;

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += 2 * (PATIENCE_NS / 1000000000ull);
    if (pthread_clockjoin_np(holder, NULL, CLOCK_MONOTONIC, &end) == 0)
        return;
    if (!__atomic_load_n(&still->acting, __ATOMIC_SEQ_CST)) {
        say("process %d can't be held nor let go of: killed", still->pid);
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    }
    pthread_join(holder, NULL);
}

bool still_while(pid_t pid, pid_t tid, bool (*act)(void *context, bool is_still), void *context)
{
    struct still still = {.pid = pid, .tid = tid, .act = act, .context = context};
    pthread_t holder;

    bool alone = reach_threads_of(pid) == 1; /* it waits for us */
    if (alone || !kernel_can()) {
        act(context, alone);
        return true;
    }
    CLEANUP_FD int pidfd = reach_pidfd(pid);
    if (pidfd < 0 || pthread_create(&holder, NULL, hold, &still) != 0)
        return false;
    join(&still, holder, pidfd);
    free(still.others);
    return true;
}
