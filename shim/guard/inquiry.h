/*
 * Asking for a tenant's channels on its own file, which has to be taken from its process: that may keep whoever does it
 * waiting for as long as the process likes. So each tenant has a thread for it, which the scheduler never waits for.
 */
#ifndef VGPU_GUARD_INQUIRY_H
#define VGPU_GUARD_INQUIRY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "backend.h"

#define INQUIRY_MAX 8 /* questions at once; 0.14 ms each, 0.35 and more where something runs */

struct question {
    struct channel channel;
    uint32_t device, userd;
    pid_t pid;
    int file;
    bool yes; /* the answer */
};

enum inquiry_kind {
    INQUIRY_SHARE, /* let the guard see the memory that the ring is in */
    INQUIRY_IDLE,  /* is nothing of the channel running or waiting? */
};

/* False: the last one of this tenant's is not answered yet. */
bool inquiry_post(int slot, enum inquiry_kind kind, int gpu, const struct question *questions, int count);
/* The answers of the last one, once. Returns their number; 0: there are none, or none yet. */
int inquiry_take(int slot, enum inquiry_kind *kind, struct question questions[INQUIRY_MAX]);

#endif
