/*
 * Which tenants have work for a GPU. Nobody is asked for a word: a channel's ring shows what was handed in, and the
 * driver knows whether something of it still runs or waits. One a GPU, for its scheduler's thread alone.
 */
#ifndef VGPU_GUARD_WORK_H
#define VGPU_GUARD_WORK_H

#include <stdbool.h>
#include <stdint.h>

struct work;

struct work *work_open(int gpu); /* dies when it can't */
void work_close(struct work *work);

/* Channels came, went or were scheduled: look at those of the tenants that it is about. */
void work_refresh(struct work *work);
/* Can everything that the tenant does be seen? A new channel can't for a moment, some never. */
bool work_is_seen(const struct work *work, int slot);
/* Was something handed in since the tenant was last found idle? */
bool work_is_pending(struct work *work, int slot);
/* Was something handed in since this was last asked, or is something not yet fetched? */
bool work_moved(struct work *work, int slot);
/* Ask the driver: true, and kept in mind, when nothing of the tenant runs or waits. Some 0.2 ms. */
bool work_prove_idle(struct work *work, int slot);

#endif
