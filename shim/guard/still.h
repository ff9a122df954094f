/*
 * Holding a process still while the kernel goes on with one call of it: none of its threads can change the call then,
 * nor swap a descriptor. Memory that it shares with another process can still be written.
 */
#ifndef VGPU_GUARD_STILL_H
#define VGPU_GUARD_STILL_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * Calls `act` while no thread of `pid` runs; it has to answer the call that `tid` waits in, and returns whether the
 * kernel goes on with it: then the others wait until it is done. `is_still` false: they can't be held, such as under a
 * debugger, or one does not stop. False: `act` was not called. A process that can be neither held nor let go of, for it
 * is just becoming another program, is killed.
 */
bool still_while(pid_t pid, pid_t tid, bool (*act)(void *context, bool is_still), void *context);

#endif
