/*
 * A tenant's processes that made a judged call, or spoke of managed memory: known so that their end is noticed, and to
 * take their descriptors. The caller holds the crew's lock.
 */
#ifndef VGPU_GUARD_MEMBERS_H
#define VGPU_GUARD_MEMBERS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "backend.h"

#define CREW_PROCESSES 1024

struct member {
    pid_t pid; /* 0: free */
    int pidfd;
    bool uses_gpu; /* else its call was a terminal's that looks like ours */
};

struct members {
    int epoll;      /* told of each one's end, once: with `event` and its place */
    uint64_t event; /* in the upper half */
    int end;
    struct member rows[CREW_PROCESSES];
};

struct member *members_find(struct members *members, pid_t pid);
/* The one there is, or a new one; NULL: it has ended, or there are too many. */
struct member *members_note(struct members *members, pid_t pid);
/*
 * The calling thread's process, its descriptor `fd` taken, and of what kind that is; -1 when it is gone or the table is
 * full.
 */
pid_t members_take(struct members *members, pid_t tid, int fd, int *taken, enum file_kind *kind);
void members_remove(struct members *members, int place);
int members_list(const struct members *members, pid_t pids[CREW_PROCESSES]); /* how many */
void members_kill(const struct members *members);                            /* those who use the GPU */
void members_close(struct members *members);

#endif
