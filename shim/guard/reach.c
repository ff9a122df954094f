#define _GNU_SOURCE
#include "reach.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "util.h"

#ifndef PIDFD_THREAD /* Linux 6.9 */
#define PIDFD_THREAD O_EXCL
#endif
#ifndef PIDFD_GET_INFO /* Linux 6.13, include/uapi/linux/pidfd.h */
struct pidfd_info {
    uint64_t mask, cgroup;
    uint32_t pid, tgid, parent, users_and_groups[8], spare;
};
#define PIDFD_GET_INFO _IOWR(0xFF, 11, struct pidfd_info)
#endif
#define SMALLEST_PAGE 4096u

static int pidfd_getfd(int pidfd, int fd) { return (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0); }
static int pidfd_open(pid_t pid, unsigned flags) { return (int)syscall(SYS_pidfd_open, pid, flags); }
int reach_pidfd(pid_t pid) { return pidfd_open(pid, 0); }

bool reach_has_exited(pid_t pid)
{
    CLEANUP_FD int pidfd = reach_pidfd(pid);
    struct pollfd exited = {.fd = pidfd, .events = POLLIN};

    return pidfd < 0 ? errno == ESRCH : poll(&exited, 1, 0) == 1;
}

bool reach_read(pid_t tid, uint64_t address, void *to, size_t size)
{
    struct iovec here = {to, size}, there = {(void *)(uintptr_t)address, size};
    return !size || process_vm_readv(tid, &here, 1, &there, 1, 0) == (ssize_t)size;
}

bool reach_write(pid_t tid, uint64_t address, const void *from, size_t size)
{
    struct iovec here = {(void *)(uintptr_t)from, size}, there = {(void *)(uintptr_t)address, size};
    return !size || process_vm_writev(tid, &here, 1, &there, 1, 0) == (ssize_t)size;
}

size_t reach_read_some(pid_t tid, uint64_t address, void *to, size_t size)
{
    enum { PIECES = 16 };
    struct iovec here = {to, size}, there[PIECES];
    size_t asked = 0;
    int count = 0;

    /* partial reads end at a piece's border: so one piece a page */
    while (asked < size && count < PIECES) {
        size_t piece = SMALLEST_PAGE - (address + asked) % SMALLEST_PAGE;
        if (piece > size - asked)
            piece = size - asked;
        there[count++] = (struct iovec){(void *)(uintptr_t)(address + asked), piece};
        asked += piece;
    }
    ssize_t got = process_vm_readv(tid, &here, 1, there, (unsigned long)count, 0);
    return got < 0 ? 0 : (size_t)got;
}

bool reach_write_changes(pid_t tid, uint64_t address, const void *before, const void *after, size_t size)
{
    const unsigned char *old = before, *new = after;
    size_t first = 0, end = size;

    while (first < end && old[first] == new[first])
        first++;
    while (end > first && old[end - 1] == new[end - 1])
        end--;
    return reach_write(tid, address + first, new + first, end - first);
}

int reach_can(pid_t pid)
{
    unsigned char probe;
    char path[64], line[64];

    /* any mapped address will do: the start of its first mapping */
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    CLEANUP_FD int maps = open(path, O_RDONLY | O_CLOEXEC);
    if (maps < 0)
        return errno;
    if (read(maps, line, sizeof line - 1) <= 0)
        return EACCES;
    line[sizeof line - 1] = 0;
    errno = 0;
    if (!reach_read(pid, strtoull(line, NULL, 16), &probe, 1))
        return errno ? errno : EACCES;
    CLEANUP_FD int pidfd = reach_pidfd(pid);
    if (pidfd < 0)
        return errno;
    CLEANUP_FD int fd = pidfd_getfd(pidfd, 0);
    return fd < 0 && errno != EBADF ? errno : 0;
}

#define LAST_COLUMN (-1)

/* A number out of /proc/<tid>/status; -1 when the thread is gone. `column`: 0 is the first after the name. */
static long status_field(pid_t tid, const char *name, int column)
{
    char path[64], text[16384]; /* who is in many groups has a long one */

    snprintf(path, sizeof path, "/proc/%d/status", tid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (got <= 0)
        return -1;
    text[got] = 0;
    char *at = strstr(text, name);
    if (!at)
        return -1;
    at += strlen(name);
    at[strcspn(at, "\n")] = 0;
    char *last = strrchr(at, '\t');
    if (column == LAST_COLUMN && last)
        at = last;
    while (column-- > 0)
        strtol(at, &at, 10);
    return strtol(at, NULL, 10);
}

pid_t reach_pid_inside(pid_t pid)
{
    long inside = status_field(pid, "\nNSpid:", LAST_COLUMN);
    return inside > 0 ? (pid_t)inside : pid;
}

int reach_thread(pid_t tid) { return pidfd_open(tid, PIDFD_THREAD); }

pid_t reach_process_of(pid_t tid, int thread)
{
    struct pidfd_info info = {0};

    if (thread >= 0 && ioctl(thread, PIDFD_GET_INFO, &info) == 0)
        return (pid_t)info.tgid;
    return (pid_t)status_field(tid, "\nTgid:", 0); /* as true, and slower by ten microseconds */
}

int reach_threads_of(pid_t pid) { return (int)status_field(pid, "\nThreads:", 0); }

int reach_descriptor(int pidfd, pid_t pid, pid_t tid, int thread, int fd)
{
    if (tid == pid)
        return pidfd_getfd(pidfd, fd);
    if (thread >= 0)
        return pidfd_getfd(thread, fd);
    if (syscall(SYS_kcmp, pid, tid, KCMP_FILES, 0, 0) == 0)
        return pidfd_getfd(pidfd, fd);
    errno = EACCES;
    return -1;
}

bool reach_same_file(int fd, int other) { return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, other) == 0; }

/* The bare system call changes this thread alone; libc's would change all. */
static bool set_effective_user(uid_t user) { return syscall(SYS_setresuid, -1, user, -1) == 0; }

bool reach_be_user_of(pid_t tid)
{
    long user = status_field(tid, "\nUid:", 1);

    return user >= 0 && ((uid_t)user == geteuid() || set_effective_user((uid_t)user));
}

void reach_be_oneself(void)
{
    if (geteuid() != getuid() && !set_effective_user(getuid()))
        die_with_error("setresuid back"); /* never go on as somebody else */
}
