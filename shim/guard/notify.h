/*
 * The crews: a tenant's notifications are received and answered by threads of its own, so that what one tenant does to
 * its guard (arguments that never come into memory, a flood) is felt by itself alone. Each listener has a thread that
 * waits in the kernel for its next call, and others while that one is busy; one more a tenant keeps house: it notices
 * processes that end, and files that are closed.
 */
#ifndef VGPU_GUARD_NOTIFY_H
#define VGPU_GUARD_NOTIFY_H

#include <stdbool.h>
#include <sys/types.h>

#define CREW_LISTENERS 64
#define LISTENER_RECEIVERS 4
#define CREW_RECEIVERS 96

extern bool notify_trace; /* say every judged call on stderr */

/* All of this on the main thread. */
bool notify_set_tenant(int slot); /* its crew, if it has none yet */
/* Takes the descriptor. `old`: a predecessor listened by it, and what it was told of its processes is not known. */
bool notify_add_listener(int slot, int fd, bool old);
void notify_remove_tenant(int slot);
/* Its end will be noticed. False: it is gone, or there are too many. */
bool notify_note_process(int slot, pid_t pid);
int notify_listener_count(void);
/* Calls that a predecessor left and nobody waits for any more: what the driver may have made stays on the account. */
void notify_abandon_leftovers(void);
/* Each listener's descriptor, until `use` says false. */
void notify_each_listener(bool (*use)(int slot, int fd, void *context), void *context);

#endif
