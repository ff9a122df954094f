/* What perform.c has for those who perform a kind of call in a room of their own (clients.c, names.c, processes.c). */
#ifndef VGPU_GUARD_PERFORM_PARTS_H
#define VGPU_GUARD_PERFORM_PARTS_H

#include "perform.h"

/* Around the driver's part and the ledger's: two clients' locks, or one's twice. */
void parts_lock_roots(struct holdings *holdings, uint32_t a, uint32_t b);
void parts_unlock_roots(struct holdings *holdings, uint32_t a, uint32_t b);
/* What is being made, for a successor to unmake; root 0: nothing. */
void parts_note_making(struct job *job, uint32_t root, uint32_t handle);
int parts_rm_control(struct job *job, pid_t pid, struct nvos54 *call);
int parts_rm_alloc(struct job *job, pid_t pid, struct nvos64 *call);
bool parts_undo(struct job *job, pid_t pid, uint32_t root, uint32_t parent, uint32_t handle);
int parts_answer_status(const struct call *call, uint32_t offset, uint32_t status);
/* Under the tenant's quota, for something that the driver is about to be asked for. The driver's status. */
uint32_t parts_reserve(struct job *job, const struct call *call, uint32_t root, uint32_t parent, uint32_t handle,
                       uint32_t class, uint64_t bytes);
void parts_forget(uint32_t root, uint32_t handle);
uint32_t parts_free_number(void);

#endif
