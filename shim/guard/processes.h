/* A tenant's processes as the driver knows them, the makers of its clients; and what it may ask about processes. */
#ifndef VGPU_GUARD_PROCESSES_H
#define VGPU_GUARD_PROCESSES_H

#include "perform.h"

/* Each once, in order. Returns how many. Under ledger_lock(). */
int processes_list(int slot, pid_t *pids, int max);
/* Does the command tell of processes? Then it is for processes_control() to perform. */
bool processes_asked(uint32_t command);
/*
 * What the driver tells of processes, NVML's lists among it: to a tenant of its own alone, by the numbers that they
 * have in their own namespace. 0 or an errno; the driver's status is in `mine`.
 */
int processes_control(struct job *job, const struct call *call, struct nvos54 *mine, void *params);

#endif
