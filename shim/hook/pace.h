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
void pace_leave(struct lane *lane);                             /* and after it */
void pace_forget_stream(void *stream);                          /* it is about to be destroyed; its work goes on */
void pace_forget_green(const void *green, const void *context); /* and all streams of a green context */
/* A context is about to end, or all of a device. */
#define NO_CONTEXT ((const void *)1)
#define NO_DEVICE (-1)
void pace_forget_context(const void *context, int device);
/* Around a call that may end a device's context: nobody asks for its events meanwhile. False: there is nothing to let
 * go. */
bool pace_hold(void);
void pace_let_go(bool gone, int device);

#endif
