#ifndef VGPU_GUARD_THREAD_H
#define VGPU_GUARD_THREAD_H

#include <pthread.h>
#include <stdbool.h>

/* A thread with a small stack that nobody waits for. */
bool start_detached(void *(*run)(void *), void *argument);
/* A condition whose timed waits are by CLOCK_MONOTONIC. */
void init_condition(pthread_cond_t *condition);

#endif
