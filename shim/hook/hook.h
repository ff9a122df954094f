/* The shim's parts to each other. */
#ifndef VGPU_HOOK_H
#define VGPU_HOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "slice_page.h"
#include "symbols.h"

#define API __attribute__((visibility("default")))

/* hook.c: the driver's own function behind a row, or NULL when its library is not loaded. */
void *real(enum row_id row);
void *real_symbol(const char *library, const char *symbol);
void *next_symbol(const char *symbol); /* of the libraries behind this one */

/* slice.c: a consistent copy of what the tenant may use. False: this process is in no slice. */
struct slice {
    uint64_t quota, free, sampled_at_ns; /* free: of device memory */
    uint32_t core_millipercent;
    char gpu_uuid[VGPU_UUID_LENGTH];
};
bool slice_read(struct slice *out);
/* The tenant's processes on the GPU: at most `room` rows; returns how many there are. */
unsigned slice_processes(struct vgpu_process_row *out, unsigned room);
const char *slice_directory(void); /* NULL outside a slice */

/* daemon.c: a word to the daemon. The ledger is the daemon's where the guard does not count (tier `shim`). */
bool ledger_counts(void);
bool ledger_reserve(uint64_t bytes);
void ledger_release(uint64_t bytes);
void report_unknown(const char *symbol);
void report_refused(const char *call, uint64_t bytes); /* the driver was out of memory */
enum daemon_answer { DAEMON_YES, DAEMON_NO, DAEMON_AWAY };
/* This process has so much managed memory in all (tier `guard`). */
enum daemon_answer daemon_set_managed(uint64_t bytes);

/* managed.c: this process' managed memory in tier `guard`, whose driver calls tell nothing of it. */
bool managed_reserve(uint64_t bytes); /* waits while the daemon is away; false: over the quota */
void managed_release(uint64_t bytes); /* what was reserved, or kept and taken */
void managed_keep(uint64_t address, uint64_t bytes);
uint64_t managed_take(uint64_t address); /* before it is freed, for the address may be another's then; 0: not managed */
void managed_sweep(void);                /* give back what went with its context */

#endif
