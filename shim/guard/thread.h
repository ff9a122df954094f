#ifndef VGPU_GUARD_THREAD_H
#define VGPU_GUARD_THREAD_H

#include <stdbool.h>

/* A thread with a small stack that nobody waits for. */
bool start_detached(void *(*run)(void *), void *argument);

#endif
