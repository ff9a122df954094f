/* A process with busy threads, held still while one call of it waits for its answer. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "still.h"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
enum { BUSY = 4, CALLS = 20, LOOK_US = 3000 };

/* Written by the process that is held, read by the test. */
static struct {
    atomic_int listener, taken, done, signals;
    atomic_long turns[BUSY], threads;
} *seen;

static void *turn(void *argument)
{
    atomic_long *turns = argument;

    for (;;)
        atomic_fetch_add(turns, 1);
    return NULL;
}

static void *pass_on(void *argument) /* each thread makes the next, and ends */
{
    pthread_t next;

    atomic_fetch_add(&seen->threads, 1);
    usleep(20000);
    if (pthread_create(&next, NULL, pass_on, argument) == 0)
        pthread_detach(next);
    return NULL;
}

static int listen_for(unsigned number)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                        SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &filter);
}

static void *call(void *argument)
{
    atomic_store(&seen->listener, listen_for(SYS_getpgid));
    for (int i = 0; i < CALLS; i++) {
        syscall(SYS_getpgid, 0);
        atomic_fetch_add(&seen->done, 1);
    }
    pause();
    return argument;
}

static bool with_vfork; /* one waits for its child */

static void *wait_in_vfork(void *argument)
{
    if (vfork() == 0) {
        sleep(6);
        _exit(0);
    }
    return argument;
}

static void on_signal(int signal)
{
    (void)signal;
    atomic_fetch_add(&seen->signals, 1);
}

/* `first`: the process' first thread calls; else that one ends. */
static pid_t start(bool first)
{
    pthread_t thread;
    pid_t child;

    memset(seen, 0, sizeof *seen);
    child = fork();
    if (child != 0)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGRTMIN, on_signal);
    for (int i = 0; i < BUSY; i++)
        pthread_create(&thread, NULL, turn, &seen->turns[i]);
    pthread_create(&thread, NULL, pass_on, NULL);
    if (with_vfork)
        pthread_create(&thread, NULL, wait_in_vfork, NULL);
    if (first)
        call(NULL);
    pthread_create(&thread, NULL, call, NULL);
    while (!atomic_load(&seen->taken))
        usleep(100);
    pthread_exit(NULL); /* the first thread's end is not the process' */
}

static int listener_of(pid_t child)
{
    int pidfd = (int)syscall(SYS_pidfd_open, child, 0), listener = -1;

    for (int i = 0; i < 5000 && !atomic_load(&seen->listener); i++)
        usleep(1000);
    listener = (int)syscall(SYS_pidfd_getfd, pidfd, atomic_load(&seen->listener), 0);
    CHECK(listener >= 0);
    close(pidfd);
    atomic_store(&seen->taken, 1);
    return listener;
}

struct scene {
    int listener;
    struct seccomp_notif notification;
    bool kills, was_still;
    pid_t child;
};

static void receive(struct scene *scene)
{
    memset(&scene->notification, 0, sizeof scene->notification);
    CHECK(ioctl(scene->listener, SECCOMP_IOCTL_NOTIF_RECV, &scene->notification) == 0);
}

static long all_turns(void)
{
    long sum = atomic_load(&seen->threads);

    for (int i = 0; i < BUSY; i++)
        sum += atomic_load(&seen->turns[i]);
    return sum;
}

static bool look_and_answer(void *context, bool is_still)
{
    struct scene *scene = context;
    struct seccomp_notif_resp response = {.id = scene->notification.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    long before = all_turns();

    usleep(LOOK_US);
    scene->was_still = is_still;
    if (is_still)
        CHECK(all_turns() == before);
    if (scene->kills)
        kill(scene->child, SIGKILL);
    else
        CHECK(ioctl(scene->listener, SECCOMP_IOCTL_NOTIF_SEND, &response) == 0);
    return true;
}

static void end(pid_t child)
{
    kill(child, SIGKILL);
    while (waitpid(child, NULL, __WALL) < 0 && errno == EINTR)
        ;
    CHECK(kill(child, 0) < 0 && errno == ESRCH);
}

static void nobody_runs_until_the_call_is_done_and_all_do_then(void)
{
    struct scene scene = {.child = start(false)};

    scene.listener = listener_of(scene.child);
    for (int i = 0; i < CALLS; i++) {
        receive(&scene);
        CHECK(still_while(scene.child, (pid_t)scene.notification.pid, look_and_answer, &scene));
        CHECK(scene.was_still);
        long before = all_turns();
        usleep(LOOK_US);
        CHECK(all_turns() > before);
    }
    for (int i = 0; i < 1000 && atomic_load(&seen->done) < CALLS; i++)
        usleep(1000);
    CHECK(atomic_load(&seen->done) == CALLS);
    close(scene.listener);
    end(scene.child);
}

static void who_has_a_debugger_is_not_held(void)
{
    struct scene scene = {.child = start(false)};
    int status;

    scene.listener = listener_of(scene.child);
    receive(&scene);
    pid_t tid = (pid_t)scene.notification.pid;
    CHECK(ptrace(PTRACE_SEIZE, tid, NULL, NULL) == 0);
    CHECK(still_while(scene.child, tid, look_and_answer, &scene));
    CHECK(!scene.was_still);
    CHECK(ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) == 0 && waitpid(tid, &status, __WALL) == tid);
    CHECK(ptrace(PTRACE_DETACH, tid, NULL, NULL) == 0);
    close(scene.listener);
    end(scene.child);
}

static void who_does_not_stop_is_not_held_and_lives_on(void)
{
    struct scene scene = {0};

    with_vfork = true;
    scene.child = start(true);
    with_vfork = false;
    scene.listener = listener_of(scene.child);
    usleep(100000);
    receive(&scene);
    CHECK(still_while(scene.child, (pid_t)scene.notification.pid, look_and_answer, &scene) && !scene.was_still);
    CHECK(waitpid(scene.child, NULL, WNOHANG) == 0);
    close(scene.listener);
    end(scene.child);
}

/* Of real-time signals each one counts. */
static void no_signal_is_lost(void)
{
    struct scene scene = {.child = start(true)};
    int sent = 0;

    scene.listener = listener_of(scene.child);
    for (int i = 0; i < CALLS; i++) {
        receive(&scene);
        for (int j = 0; j < 10; j++)
            sent += kill(scene.child, SIGRTMIN) == 0;
        CHECK(still_while(scene.child, (pid_t)scene.notification.pid, look_and_answer, &scene) && scene.was_still);
    }
    for (int i = 0; i < 1000 && atomic_load(&seen->signals) < sent; i++)
        usleep(1000);
    CHECK(sent == 10 * CALLS && atomic_load(&seen->signals) == sent);
    close(scene.listener);
    end(scene.child);
}

static void who_is_killed_meanwhile_is_let_go(bool first)
{
    struct scene scene = {.kills = true, .child = start(first)};

    scene.listener = listener_of(scene.child);
    receive(&scene);
    CHECK(still_while(scene.child, (pid_t)scene.notification.pid, look_and_answer, &scene));
    close(scene.listener);
    end(scene.child);
}

void test_still(void)
{
    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(seen != MAP_FAILED);
    nobody_runs_until_the_call_is_done_and_all_do_then();
    who_has_a_debugger_is_not_held();
    who_is_killed_meanwhile_is_let_go(false);
    who_is_killed_meanwhile_is_let_go(true);
    who_does_not_stop_is_not_held_and_lives_on();
    no_signal_is_lost();
    munmap(seen, sizeof *seen);
}
