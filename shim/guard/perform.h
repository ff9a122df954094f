/*
 * Doing a tenant's call for it: on its own descriptor, from the guard's copy of the arguments, with the ledger kept
 * in step. What is written back is what the driver wrote.
 */
#ifndef VGPU_GUARD_PERFORM_H
#define VGPU_GUARD_PERFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "holdings.h"
#include "judge.h"
#include "ledger.h"
#include "params.h"

/* A receiver's own: scratch memory, and the call in hand as the ledger keeps it. */
struct job {
    struct holdings *holdings;
    struct ledger_inflight *inflight;
    unsigned char *scratch; /* JOB_SCRATCH bytes */
    int fd;                 /* the tenant's, taken */
    bool redoing;           /* a predecessor may have carried it out */
};
#define JOB_SCRATCH ((size_t)2 * (1 + PARAM_POINTERS_MAX) * PARAMS_MAX)

/* Does what the verdict says; not for CONTINUE. 0 or the errno that the tenant gets. */
int perform(struct job *job, struct call *call, const struct verdict *verdict);
/* Undo on the tenant's file what a killed predecessor was making there. */
void perform_take_back(struct job *job);

#endif
