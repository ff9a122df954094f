/* Holding a process still while the kernel goes on with one call of it: nothing of the call can become another then. */
#ifndef VGPU_GUARD_STILL_H
#define VGPU_GUARD_STILL_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * Calls `act` while no thread of `pid` runs; it has to answer the call that `tid` waits in. The others go on when that
 * call is done. `is_still` false: they can't be held, such as under a debugger, or one does not stop. False: `act` was
 * not called.
 */
bool still_while(pid_t pid, pid_t tid, void (*act)(void *context, bool is_still), void *context);

#endif
