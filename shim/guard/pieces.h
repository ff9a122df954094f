/* What a command's struct points at: fetched before the driver is asked, and brought back after. */
#ifndef VGPU_GUARD_PIECES_H
#define VGPU_GUARD_PIECES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "params.h"

/* One of them: the guard's copies, before and after. */
struct piece {
    uint64_t address;
    uint32_t size, offset; /* of the pointer in the struct */
    unsigned char *before, *after;
};

/*
 * Replaces each pointer in `params` by one to a copy in `room`, 2 * PARAM_POINTERS_MAX * PARAMS_MAX bytes. Returns the
 * number of pieces, -1 where they can't be had.
 */
int pieces_copy(pid_t tid, const struct param_pointers *spec, unsigned char *params, uint32_t size, unsigned char *room,
                struct piece pieces[PARAM_POINTERS_MAX]);
/* The other way: the tenant's pointers are in `params` again, and what the driver changed is in the tenant. */
bool pieces_write(pid_t tid, unsigned char *params, const struct piece *pieces, int count);

#endif
