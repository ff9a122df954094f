/* A tenant's threads in the guard, and what they have in common. */
#ifndef VGPU_GUARD_CREW_H
#define VGPU_GUARD_CREW_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "audit.h"
#include "holdings.h"
#include "ledger.h"
#include "members.h"
#include "notify.h"

struct listener {
    int fd;              /* -1: free */
    bool gone;           /* no process is left under the filter, or the tenant ended: its receivers end */
    uint16_t generation; /* of this place: an event may be about who had it before */
    int receivers, waiting;
    pid_t threads[LISTENER_RECEIVERS]; /* 0: none; as the kernel numbers them */
};

struct crew {
    int slot, epoll, bell; /* bell: rung at the end */
    pthread_mutex_t lock;  /* over the tables below */
    struct members members;
    struct listener listeners[CREW_LISTENERS];
    pthread_mutex_t making; /* a client, by the door that gives memory too */
    pid_t maker;            /* whose; 0: nobody's now */
    bool shares;            /* processes of the tenant may have descriptors in common, for good */
    uint64_t told_ns;       /* when it was last said that a client was refused */
    int receivers;
    bool busy[LEDGER_INFLIGHT]; /* entries of ledger->inflight[slot] that a receiver of ours uses */
    uint64_t swept_ns;          /* this and the next two: the housekeeper's */
    bool orphans;
    struct audit audit;
    struct holdings holdings; /* with a lock of their own */
};

#endif
