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
/* Take what was answered meanwhile, and see more rings. */
void work_go_on(struct work *work);
/* Can everything that the tenant does be seen? A new channel can't for a moment, some never. */
bool work_is_seen(const struct work *work, int slot);
/* Was something handed in since the tenant was last found idle? Of one that is off. */
bool work_is_pending(struct work *work, int slot);
/* Was something handed in since this was last asked, or is something not yet fetched? */
bool work_moved(struct work *work, int slot);

enum work_state { WORK_BUSY, WORK_ASKED, WORK_IDLE };
/* ASKED: the driver is asked whether something of the tenant's runs or waits; ask again, and go on with work_go_on().
 */
enum work_state work_ask(struct work *work, int slot);
/* Which processes handed something in since this was last asked, onto their tenants' pages. False: some can't be seen
 * yet, so ask again soon. */
bool work_note_activity(struct work *work);
/* The tenant goes off: an answer that comes now says nothing. */
void work_leave(struct work *work, int slot);
/* The tenant was on without being looked at: what was known of it is not known any more. */
void work_doubt(struct work *work, int slot);

#endif
