#define _GNU_SOURCE
#include "members.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "reach.h"
#include "util.h"

struct member *members_find(struct members *members, pid_t pid)
{
    for (int i = 0; i < members->end; i++)
        if (members->rows[i].pid == pid)
            return &members->rows[i];
    return NULL;
}

static bool watch(const struct members *members, const struct member *member, int pidfd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT,
                                .data.u64 = members->event | (uint32_t)(member - members->rows)};
    return epoll_ctl(members->epoll, EPOLL_CTL_ADD, pidfd, &event) == 0;
}

static struct member *add(struct members *members, pid_t pid)
{
    struct member *place = members_find(members, 0);

    if (!place && members->end < CREW_PROCESSES)
        place = &members->rows[members->end++];
    CLEANUP_FD int pidfd = place ? reach_pidfd(pid) : -1;
    if (pidfd < 0 || !watch(members, place, pidfd))
        return NULL;
    *place = (struct member){.pid = pid, .pidfd = pidfd};
    pidfd = -1; /* the table's now */
    return place;
}

struct member *members_note(struct members *members, pid_t pid)
{
    struct member *known = members_find(members, pid);
    return known ? known : add(members, pid);
}

pid_t members_take(struct members *members, pid_t tid, int fd, int *taken, enum file_kind *kind)
{
    struct member *member = members_find(members, tid);
    CLEANUP_FD int thread = member ? -1 : reach_thread(tid);
    pid_t pid = member ? tid : reach_process_of(tid, thread);

    if (!member && pid > 0)
        member = members_note(members, pid);
    errno = ESRCH;
    *taken = member ? reach_descriptor(member->pidfd, pid, tid, thread, fd) : -1;
    int error = errno;
    *kind = *taken < 0 ? FILE_OTHER : backend->kind(*taken);
    if (*kind != FILE_OTHER)
        member->uses_gpu = true;
    errno = error;
    return member ? pid : -1;
}

void members_remove(struct members *members, int place)
{
    struct member *member = &members->rows[place];

    if (!member->pid)
        return;
    if (epoll_ctl(members->epoll, EPOLL_CTL_DEL, member->pidfd, NULL) < 0)
        say("epoll_ctl EPOLL_CTL_DEL: %s", strerror(errno));
    close(member->pidfd);
    member->pid = 0;
}

int members_list(const struct members *members, pid_t pids[CREW_PROCESSES])
{
    int count = 0;

    for (int i = 0; i < members->end; i++)
        if (members->rows[i].pid)
            pids[count++] = members->rows[i].pid;
    return count;
}

void members_kill(const struct members *members)
{
    for (int i = 0; i < members->end; i++)
        if (members->rows[i].pid && members->rows[i].uses_gpu)
            syscall(SYS_pidfd_send_signal, members->rows[i].pidfd, SIGKILL, NULL, 0);
}

void members_close(struct members *members)
{
    for (int i = 0; i < members->end; i++)
        if (members->rows[i].pid)
            close(members->rows[i].pidfd);
}
