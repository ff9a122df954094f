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
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "util.h"

#define PATIENCE_NS 2000000000ull
#define PAUSE_US 20

struct held {
    pid_t tid;
    bool stopped;
};

enum look { GONE, RUNNING, STOPPED };

struct still {
    pid_t pid, tid;
    void (*act)(void *context, bool is_still);
    void *context;
    bool left; /* the caller does not wait any more */
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

static bool is_zombie(pid_t tid)
{
    char path[64], text[512];

    snprintf(path, sizeof path, "/proc/%d/stat", tid);
    FILE *stat = fopen(path, "re");
    if (!stat)
        return false;
    bool read = fgets(text, sizeof text, stat);
    fclose(stat);
    const char *state = read ? strrchr(text, ')') : NULL;
    return state && state[2] == 'Z';
}

/* `flags`: WNOHANG, or 0 to wait for it. */
static enum look look_at(pid_t tid, int flags)
{
    int status;
    pid_t got;

    do
        got = waitpid(tid, &status, __WALL | flags);
    while (got < 0 && errno == EINTR);
    return got == 0 ? RUNNING : got > 0 && WIFSTOPPED(status) ? STOPPED : GONE;
}

static bool is_known(const struct still *still, pid_t tid)
{
    for (int i = 0; i < still->count; i++)
        if (still->others[i].tid == tid)
            return true;
    return tid == still->tid;
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

/*
 * 1: it runs, or did a moment ago, and may have made another; 0: it is the first thread, which stays in the list after
 * its end; -1: it can't be held.
 */
static int seize_another(struct still *still, pid_t tid)
{
    if (seize(tid))
        return add(still, tid) ? 1 : -1;
    if (errno == ESRCH)
        return 1;
    return !is_zombie(tid) ? -1 : tid == still->pid ? 0 : 1;
}

/* How many more there are than are known; -1: one can't be held. */
static int seize_the_rest(struct still *still)
{
    char path[64];
    int found = 0, one = 0;

    snprintf(path, sizeof path, "/proc/%d/task", still->pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        return -1;
    for (const struct dirent *entry; one >= 0 && (entry = readdir(tasks));) {
        pid_t tid = (pid_t)atoi(entry->d_name);
        one = tid > 0 && !is_known(still, tid) ? seize_another(still, tid) : 0;
        found += one;
    }
    closedir(tasks);
    return one < 0 ? -1 : found;
}

/* One that has ended is forgotten: its number may be another's by now. */
static void look_at_the_rest(struct still *still)
{
    int kept = 0;

    for (int i = 0; i < still->count; i++) {
        struct held *other = &still->others[i];
        enum look seen = other->stopped ? STOPPED : look_at(other->tid, WNOHANG);
        if (seen != GONE)
            still->others[kept++] = (struct held){other->tid, seen == STOPPED};
    }
    still->count = kept;
}

static bool all_stopped(const struct still *still)
{
    for (int i = 0; i < still->count; i++)
        if (!still->others[i].stopped)
            return false;
    return true;
}

/* The caller is to wait for its answer meanwhile. */
static bool wait_for_the_rest(struct still *still, uint64_t end)
{
    for (look_at_the_rest(still); !all_stopped(still); look_at_the_rest(still)) {
        still->left = look_at(still->tid, WNOHANG) != RUNNING;
        if (still->left || monotonic_ns() > end)
            return false;
        usleep(PAUSE_US);
    }
    return true;
}

/* Who was running may have made another thread: until all are stopped, and there are no more. */
static bool stop_all(struct still *still)
{
    uint64_t end = monotonic_ns() + PATIENCE_NS;
    int found;

    if (!kernel_can())
        return false;
    do {
        found = seize_the_rest(still);
        if (found < 0 || monotonic_ns() > end || !wait_for_the_rest(still, end))
            return false;
    } while (found);
    return true;
}

static void *hold(void *argument)
{
    struct still *still = argument;
    bool seized = seize(still->tid);

    still->act(still->context, seized && stop_all(still));
    if (seized && !still->left)
        look_at(still->tid, 0);
    return NULL; /* all are let go */
}

static bool is_alone(pid_t pid)
{
    char path[64];
    int count = 0;

    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        return false;
    for (const struct dirent *entry; (entry = readdir(tasks));)
        count += entry->d_name[0] != '.';
    closedir(tasks);
    return count == 1;
}

bool still_while(pid_t pid, pid_t tid, void (*act)(void *context, bool is_still), void *context)
{
    struct still still = {.pid = pid, .tid = tid, .act = act, .context = context};
    pthread_t holder;

    if (is_alone(pid)) { /* it waits for us */
        act(context, true);
        return true;
    }
    if (pthread_create(&holder, NULL, hold, &still) != 0)
        return false;
    pthread_join(holder, NULL);
    free(still.others);
    return true;
}
