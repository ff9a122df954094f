/* The shim's parts to each other. */
#ifndef VGPU_HOOK_H
#define VGPU_HOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "account.h"
#include "slice_page.h"
#include "symbols.h"

#define API __attribute__((visibility("default")))

/* hook.c: the driver's own function behind a row, or NULL when its library is not loaded. */
void *real(enum row_id row);
/* The same in the type of the wrapper that calls it. */
#define REAL(symbol) ((__typeof__(&symbol))real(ROW_##symbol))
void *real_symbol(const char *library, const char *symbol);
void *next_symbol(const char *symbol); /* of the libraries behind this one */

/* slice.c: a consistent copy of what the tenant may use. False: this process is in no slice. */
struct slice {
    uint64_t quota, limit, free, sampled_at_ns; /* of device memory; limit: with managed memory */
    uint32_t core_millipercent;
    char gpu_uuid[VGPU_UUID_LENGTH];
};
bool slice_read(struct slice *out);
uint32_t slice_core_now(void); /* thousandths of a percent of the GPU's time; tier `shim` */
/* The tenant's processes on the GPU: at most `room` rows; returns how many there are. */
unsigned slice_processes(struct vgpu_process_row *out, unsigned room);
const char *slice_directory(void); /* NULL outside a slice */

/* account.c: where the guard does not count (tier `shim`), the tenant's processes do, together. */
bool tier_is_shim(void);
enum memory_kind { MEMORY_DEVICE, MEMORY_MANAGED };
bool account_take(uint64_t bytes, enum memory_kind kind); /* false: over the quota, or nobody is there to ask */
void account_give(uint64_t bytes, enum memory_kind kind);
struct vgpu_account *account_map(void);    /* NULL: it can't be had now */
void account_note_busy(uint64_t now);      /* work of this process is on the GPU */
void account_correct(struct slice *slice); /* what is free, to the byte */

/* daemon.c: a word to the daemon. */
void report_unknown(const char *symbol);
void report_refused(const char *call, uint64_t bytes); /* the driver was out of memory */
void report_full(uint64_t bytes);                      /* the tenant's account was */
/* The tenant's account, to map, and this process' place in it; -1: the daemon is away, or knows of no such tier. */
int daemon_open_account(unsigned *place);
enum daemon_answer { DAEMON_YES, DAEMON_NO, DAEMON_AWAY };
/* This process has so much managed memory in all (tier `guard`). */
enum daemon_answer daemon_set_managed(uint64_t bytes);

/* managed.c: this process' managed memory, of which the driver's calls tell nothing. */
bool managed_reserve(uint64_t bytes); /* waits while the daemon is away; false: over the quota */
void managed_release(uint64_t bytes); /* what was reserved, or kept and taken */
void managed_keep(uint64_t address, uint64_t bytes);
uint64_t managed_take(uint64_t address); /* before it is freed, for the address may be another's then; 0: not managed */
void managed_sweep(void);                /* give back what went with its context */

#endif
