/*
 * Who holds what: driver objects and bytes by tenant and process.
 *
 * The tables live in a shared file that outlives the guard, so that a killed guard's successor goes on
 * where it was. Bytes are reserved before the driver is asked and committed after: at every instant the
 * ledger counts at least what the tenant holds. One writer at a time: callers hold ledger_lock().
 */
#ifndef VGPU_GUARD_LEDGER_H
#define VGPU_GUARD_LEDGER_H

#include <linux/seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "slice_page.h"

#define LEDGER_MAGIC 0x4C474456u
#define LEDGER_VERSION 4u
#define LEDGER_TENANTS 1024
/* Clients that the driver numbers are 0xC1D00000 and up; files that hold exported memory have numbers of their own. */
#define EXPORT_ROOTS 0xE0000000u
#define IS_EXPORT_ROOT(root) ((root) >> 28 == EXPORT_ROOTS >> 28)
/* Managed memory, which the driver has no client for: one number a process, with what its shim says it holds. */
#define MANAGED_ROOTS 0xF0000000u
#define IS_MANAGED_ROOT(root) ((root) >= MANAGED_ROOTS)
#define IS_LEDGER_ROOT(root) ((root) >= EXPORT_ROOTS) /* not the driver's */
#define LEDGER_OBJECTS (1u << 19)
#define LEDGER_TENANT_OBJECTS (1u << 16) /* one tenant can't fill the table for all */

enum object_state { OBJECT_FREE, OBJECT_RESERVED, OBJECT_HELD };

struct ledger_object {
    uint32_t state, tenant; /* tenant: slot */
    uint32_t root, parent, handle, class;
    int32_t pid;
    uint32_t gpu;          /* index of the GPU that it is on; children have their parent's */
    uint64_t bytes;        /* charged here; of twins only one carries them */
    uint64_t scheduled_ns; /* channels: when the tenant asked the driver to run it; 0: not yet */
    uint32_t off;          /* channels: enum channel_off */
    uint32_t next_twin;    /* names of one piece of memory form a ring of positions; alone: its own */
    uint64_t userd_offset; /* channels: where in the memory `userd` the host keeps the ring's pointers */
    uint32_t userd;        /* channels: 0: the driver's own, out of reach */
    int32_t file;          /* channels: the client's file, as `pid` called it when it made the channel */
};

/* UNSURE while the driver is being asked: a guard killed in between leaves it to its successor. */
enum channel_off { CHANNEL_ON, CHANNEL_OFF, CHANNEL_UNSURE };

/*
 * A call being answered. The kernel writes it here, so a guard killed in mid-call leaves the number to answer, and
 * what it was making: `root` 0 where it makes nothing that could be left over.
 */
struct ledger_inflight {
    int32_t pid;
    uint32_t root, handle, padding;
    struct seccomp_notif notification;
    uint8_t spare[64]; /* a newer kernel's notification may be longer */
};
#define LEDGER_INFLIGHT 192 /* calls of one tenant that are answered at once, and those that a predecessor left */

struct ledger_file {
    uint32_t magic, version;
    uint32_t object_end, padding;
    struct ledger_inflight inflight[LEDGER_TENANTS][LEDGER_INFLIGHT];
    struct ledger_object objects[LEDGER_OBJECTS];
};

struct tenant {
    bool live;
    char id[72];
    int gpu;
    uint64_t memory;
    uint32_t core_millipercent, policy;
    uint32_t oversubscribe_percent; /* of `memory`: so much device and managed memory together; 100 or more */
    uint64_t most;                  /* that device_bytes() were since somebody set this to it */
    uint64_t used;    /* the truth; the page shows a copy, and who shares the tenant's user may scribble on that */
    uint64_t managed; /* of `used`: memory that the driver may move to the host */
    struct vgpu_slice_page *page;
    uint32_t objects;
    uint32_t channels;
    uint32_t channel_changes;           /* how often one came, went or was scheduled */
    uint32_t first_channel, first_root; /* positions + 1: see ledger_next_listed() */
};

/* How much device and managed memory may be together; and how much more may be taken: of managed memory, or of the
 * device's own, which stays within the quota. */
uint64_t ledger_limit(const struct tenant *tenant);
uint64_t ledger_room(const struct tenant *tenant, bool managed);
/* What of `used` is the device's own. */
static inline uint64_t device_bytes(const struct tenant *tenant) { return tenant->used - tenant->managed; }

extern struct ledger_file *ledger;
extern struct tenant tenants[LEDGER_TENANTS];

void ledger_open(const char *path); /* dies when it can't */
void ledger_close(void);
void ledger_lock(void);
void ledger_unlock(void);

/* What is under the lock. Handles are the driver's; `slot` is the tenant's. */
struct quota {
    uint64_t memory;
    uint32_t core_millipercent, policy, oversubscribe_percent;
};
bool ledger_set_tenant(int slot, const char *id, int gpu, const struct quota *quota, int page_fd);
void ledger_remove_tenant(int slot);
struct ledger_object *ledger_find(uint32_t root, uint32_t handle);
/* Whose client is this? -1: nobody's yet. */
int ledger_root_owner(uint32_t root);
/* The client is this tenant's, the driver says so. False: it is another's. */
bool ledger_claim_root(int slot, pid_t pid, uint32_t root);
/* The number of the root's open file, under which this guard watches it; 0: a predecessor's, to be found anew. */
void ledger_watch(struct ledger_object *root, uint32_t file);
uint32_t ledger_file_of(const struct ledger_object *root);
/* Tells an object from another that had its place and number before. */
uint64_t ledger_serial(const struct ledger_object *object);
/* A tenant's channels, or its roots, one after the other: NULL at the end. */
struct ledger_object *ledger_first_channel(int slot);
struct ledger_object *ledger_first_root(int slot);
struct ledger_object *ledger_next_listed(const struct ledger_object *object);

enum reserve { RESERVE_OK, RESERVE_OVER_QUOTA, RESERVE_TABLE_FULL, RESERVE_TAKEN };
enum reserve ledger_reserve(int slot, pid_t pid, uint32_t root, uint32_t parent, uint32_t handle, uint32_t class,
                            uint64_t bytes, struct ledger_object **out);
/* What was refused for good: there was no room after a sweep either. */
void ledger_tell_refusal(int slot, pid_t pid, uint32_t root, uint64_t bytes);
/* The driver did it, and says how large it is. False: rounded up, it is over the quota and has to go again. */
bool ledger_commit(struct ledger_object *object, uint64_t bytes);
void ledger_cancel(struct ledger_object *object);
/* A process' managed memory is so much from now on; 0: none. False: that is over the quota, and nothing has changed. */
bool ledger_set_managed(int slot, pid_t pid, uint64_t bytes);
/* `object` is another name of the memory that `of` names: counted once, until the last name is gone. */
void ledger_join_twins(struct ledger_object *object, struct ledger_object *of);
void ledger_free(uint32_t root, uint32_t handle); /* with children; the root itself frees the client */
/* Where a channel's ring is, and which of the process' descriptors its client's file is. */
void ledger_note_ring(struct ledger_object *channel, uint32_t userd, uint64_t offset, int file);
/* The device that an object lies on, as its client calls it; 0: on none. */
uint32_t ledger_device_of(const struct ledger_object *object);
/* The driver runs a channel, or a group's channels, from now on. True: some of them are new. */
bool ledger_note_scheduled(uint32_t root, uint32_t handle);
/* It was seen to hand in work just now; pid 0: any of the tenant's may have. Takes the lock itself. */
void ledger_note_active(int slot, pid_t pid);
void ledger_set_tier(int slot, uint32_t tier);
void ledger_note_on(int slot, bool on, uint64_t on_ns); /* the scheduler's account of channel time */

#endif
