/*
 * Tier `shim`: the tenant's share of the GPU's time. Launches pass while the tenant has time left, with a few
 * milliseconds of work in flight at most; what was used is measured on the GPU. docs/scheduling.md tells how.
 */
#ifndef VGPU_HOOK_PACE_H
#define VGPU_HOOK_PACE_H

#include <stdbool.h>

struct lane;

/* Before a launch into `stream`: waits until it may. per_thread: a stream of 0 is the thread's own. NULL: not paced. */
struct lane *pace_enter(void *stream, bool per_thread);
void pace_leave(struct lane *lane); /* and after it */
/* The stream is about to be destroyed; NULL: a context, with whatever streams it has. */
void pace_forget(void *stream);

#endif
