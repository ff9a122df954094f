#define _GNU_SOURCE
#include "ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "publish.h"
#include "rm_abi.h"
#include "util.h"

struct ledger_file *ledger;
struct tenant tenants[LEDGER_TENANTS];

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Index over ledger->objects by (root, handle): chains of positions + 1, rebuilt at start. */
#define BUCKETS (1u << 18)
static uint32_t buckets[BUCKETS], chain[LEDGER_OBJECTS], free_list[LEDGER_OBJECTS], free_count;

/* The tree, and the lists of roots and channels: positions + 1 too. */
struct links {
    uint32_t first_child, next, previous; /* next, previous: among siblings */
    uint32_t list_next, list_previous;
    uint32_t previous_twin; /* its position; of one alone its own */
    uint64_t serial;        /* no two objects of this guard's time have the same */
    uint32_t file;          /* roots: as the holdings number it; 0: not known */
};
static struct links links[LEDGER_OBJECTS];
static uint64_t last_serial;

void ledger_lock(void) { pthread_mutex_lock(&mutex); }
void ledger_unlock(void) { pthread_mutex_unlock(&mutex); }

static uint32_t bucket(uint32_t root, uint32_t handle)
{
    uint64_t key = ((uint64_t)root << 32 | handle) * 0x9E3779B97F4A7C15ull;
    return (uint32_t)(key >> 46) & (BUCKETS - 1);
}

static void index_add(uint32_t i)
{
    uint32_t b = bucket(ledger->objects[i].root, ledger->objects[i].handle);
    chain[i] = buckets[b];
    buckets[b] = i + 1;
}

static void index_remove(uint32_t i)
{
    uint32_t *link = &buckets[bucket(ledger->objects[i].root, ledger->objects[i].handle)];
    while (*link && *link != i + 1)
        link = &chain[*link - 1];
    if (*link)
        *link = chain[i];
}

struct ledger_object *ledger_find(uint32_t root, uint32_t handle)
{
    for (uint32_t i = buckets[bucket(root, handle)]; i; i = chain[i - 1]) {
        struct ledger_object *object = &ledger->objects[i - 1];
        if (object->root == root && object->handle == handle)
            return object;
    }
    return NULL;
}

static uint32_t position(const struct ledger_object *object) { return (uint32_t)(object - ledger->objects); }
static struct ledger_object *at(uint32_t link) { return link ? &ledger->objects[link - 1] : NULL; }

void ledger_watch(struct ledger_object *root, uint32_t file) { links[position(root)].file = file; }
uint32_t ledger_file_of(const struct ledger_object *root) { return links[position(root)].file; }
uint64_t ledger_serial(const struct ledger_object *object) { return links[position(object)].serial; }

static void link_child(uint32_t i)
{
    const struct ledger_object *object = &ledger->objects[i];
    struct ledger_object *parent = object->handle == object->root ? NULL : ledger_find(object->root, object->parent);

    if (!parent || parent == object)
        return;
    uint32_t *first = &links[position(parent)].first_child;
    links[i].next = *first;
    links[i].previous = 0;
    if (*first)
        links[*first - 1].previous = i + 1;
    *first = i + 1;
}

static void unlink_child(uint32_t i)
{
    const struct ledger_object *object = &ledger->objects[i];
    struct links *link = &links[i];

    if (link->next)
        links[link->next - 1].previous = link->previous;
    if (link->previous) {
        links[link->previous - 1].next = link->next;
        return;
    }
    struct ledger_object *parent = ledger_find(object->root, object->parent);
    if (parent && links[position(parent)].first_child == i + 1)
        links[position(parent)].first_child = link->next;
}

/* The tenant's list that an object belongs on, if any. */
static uint32_t *list_of(const struct ledger_object *object)
{
    struct tenant *tenant = &tenants[object->tenant];

    if (NV_CLASS_IS_CHANNEL(object->class))
        return &tenant->first_channel;
    return object->handle == object->root ? &tenant->first_root : NULL;
}

static void list_add(uint32_t i)
{
    uint32_t *first = list_of(&ledger->objects[i]);

    if (!first)
        return;
    links[i].list_next = *first;
    links[i].list_previous = 0;
    if (*first)
        links[*first - 1].list_previous = i + 1;
    *first = i + 1;
}

static void list_remove(uint32_t i)
{
    uint32_t *first = list_of(&ledger->objects[i]);

    if (!first)
        return;
    if (links[i].list_next)
        links[links[i].list_next - 1].list_previous = links[i].list_previous;
    if (links[i].list_previous)
        links[links[i].list_previous - 1].list_next = links[i].list_next;
    else if (*first == i + 1)
        *first = links[i].list_next;
}

struct ledger_object *ledger_first_channel(int slot) { return at(tenants[slot].first_channel); }
struct ledger_object *ledger_first_root(int slot) { return at(tenants[slot].first_root); }
struct ledger_object *ledger_next_listed(const struct ledger_object *object)
{
    return at(links[position(object)].list_next);
}

/* --- how much there is --- */

uint64_t ledger_limit(const struct tenant *tenant)
{
    unsigned __int128 limit = (unsigned __int128)tenant->memory * tenant->oversubscribe_percent / 100;
    return limit > UINT64_MAX ? UINT64_MAX : (uint64_t)limit;
}

uint64_t ledger_room(const struct tenant *tenant, bool managed)
{
    uint64_t device = device_bytes(tenant), limit = ledger_limit(tenant);
    uint64_t all = tenant->used < limit ? limit - tenant->used : 0;
    uint64_t own = device < tenant->memory ? tenant->memory - device : 0;

    return managed || all < own ? all : own;
}

/* Bytes and channels of one object, onto (sign 1) or off (sign -1) its tenant's and process' account. */
static void account(const struct ledger_object *object, int sign)
{
    struct tenant *tenant = &tenants[object->tenant];
    bool channel = NV_CLASS_IS_CHANNEL(object->class);

    tenant->objects += (uint32_t)sign;
    tenant->used += (uint64_t)sign * object->bytes;
    if (IS_MANAGED_ROOT(object->root))
        tenant->managed += (uint64_t)sign * object->bytes;
    if (device_bytes(tenant) > tenant->most)
        tenant->most = device_bytes(tenant);
    if (channel) {
        tenant->channels += (uint32_t)sign;
        tenant->channel_changes++;
    }
    publish_change(tenant, object, sign);
}

/* --- opening --- */

/* A guard killed while it joined or parted twins left a ring that does not close: then each is alone. */
static void mend_ring(uint32_t i)
{
    uint32_t at = i;

    for (uint32_t steps = 0; steps < LEDGER_OBJECTS; steps++) {
        at = ledger->objects[at].next_twin;
        if (at == i)
            return;
        if (at >= ledger->object_end || ledger->objects[at].state == OBJECT_FREE ||
            ledger->objects[at].tenant != ledger->objects[i].tenant)
            break;
    }
    ledger->objects[i].next_twin = i;
}

void ledger_open(const char *path)
{
    struct stat info;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0)
        die_with_error("open %s", path);
    /* Held for life: two guards would each count half. The kernel drops it with the process. */
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        die_with_error("%s: another vgpu-guard runs on this state", path);
    if (fstat(fd, &info) < 0)
        die_with_error("fstat %s", path);
    if (info.st_size != (off_t)sizeof(struct ledger_file) &&
        (ftruncate(fd, 0) < 0 || ftruncate(fd, sizeof(struct ledger_file)) < 0))
        die_with_error("ftruncate %s", path);
    ledger = mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ledger == MAP_FAILED)
        die_with_error("mmap %s", path);
    if (ledger->magic != LEDGER_MAGIC || ledger->version != LEDGER_VERSION) {
        memset(ledger, 0, sizeof *ledger);
        ledger->version = LEDGER_VERSION;
        ledger->magic = LEDGER_MAGIC;
    }
    if (ledger->object_end > LEDGER_OBJECTS)
        die("%s is damaged: %u objects; stop all GPU servers and remove it", path, ledger->object_end);
    for (uint32_t i = ledger->object_end; i-- > 0;) {
        if (ledger->objects[i].state == OBJECT_FREE || ledger->objects[i].tenant >= LEDGER_TENANTS)
            free_list[free_count++] = i;
        else
            index_add(i);
    }
    for (uint32_t i = 0; i < ledger->object_end; i++)
        if (ledger->objects[i].state != OBJECT_FREE && ledger->objects[i].tenant < LEDGER_TENANTS) {
            links[i].serial = ++last_serial;
            link_child(i);
            mend_ring(i);
        }
    for (uint32_t i = 0; i < ledger->object_end; i++)
        if (ledger->objects[i].next_twin < ledger->object_end)
            links[ledger->objects[i].next_twin].previous_twin = i;
}

void ledger_close(void)
{
    munmap(ledger, sizeof *ledger);
    ledger = NULL;
    memset(buckets, 0, sizeof buckets);
    free_count = 0;
}

/* --- tenants --- */

static void recount(int slot)
{
    struct tenant *tenant = &tenants[slot];

    tenant->objects = tenant->channels = 0;
    tenant->first_channel = tenant->first_root = 0;
    tenant->used = tenant->managed = 0;
    publish_anew(tenant);
    for (uint32_t i = 0; i < ledger->object_end; i++)
        if (ledger->objects[i].state != OBJECT_FREE && ledger->objects[i].tenant == (uint32_t)slot) {
            account(&ledger->objects[i], 1);
            list_add(i);
        }
}

bool ledger_set_tenant(int slot, const char *id, int gpu, const struct quota *quota, int page_fd)
{
    struct tenant *tenant = &tenants[slot];
    bool fresh = !tenant->live;

    if (fresh)
        *tenant = (struct tenant){.channel_changes = tenant->channel_changes};
    if (page_fd >= 0 && !publish_open(tenant, page_fd))
        return false;
    if (!tenant->page)
        return false;
    tenant->gpu = gpu;
    tenant->memory = quota->memory;
    tenant->core_millipercent = quota->core_millipercent;
    tenant->policy = quota->policy;
    tenant->oversubscribe_percent = quota->oversubscribe_percent;
    snprintf(tenant->id, sizeof tenant->id, "%s", id);
    tenant->live = true;
    publish_quota(tenant);
    if (fresh)
        recount(slot);
    return true;
}

void ledger_remove_tenant(int slot)
{
    for (uint32_t i = 0; i < ledger->object_end; i++)
        if (ledger->objects[i].state != OBJECT_FREE && ledger->objects[i].tenant == (uint32_t)slot)
            ledger_cancel(&ledger->objects[i]);
    publish_close(&tenants[slot]);
    tenants[slot] = (struct tenant){.channel_changes = tenants[slot].channel_changes};
}

void ledger_set_tier(int slot, uint32_t tier) { publish_tier(&tenants[slot], tier); }

void ledger_note_active(int slot, pid_t pid)
{
    ledger_lock();
    publish_active(&tenants[slot], pid);
    ledger_unlock();
}

void ledger_note_on(int slot, bool on, uint64_t on_ns) { publish_on(&tenants[slot], on, on_ns); }

/* --- objects --- */

int ledger_root_owner(uint32_t root)
{
    struct ledger_object *object = ledger_find(root, root);
    return object ? (int)object->tenant : -1;
}

bool ledger_claim_root(int slot, pid_t pid, uint32_t root)
{
    struct ledger_object *object = ledger_find(root, root);

    if (object) /* another's, and alive as far as is known: a file that two tenants share stays its maker's */
        return object->tenant == (uint32_t)slot;
    if (ledger_reserve(slot, pid, root, 0, root, NV01_ROOT_CLIENT, 0, &object) != RESERVE_OK)
        return false;
    object->state = OBJECT_HELD;
    return true;
}

void ledger_tell_refusal(int slot, pid_t pid, uint32_t root, uint64_t bytes)
{
    publish_refusal(&tenants[slot], pid, bytes, ledger_room(&tenants[slot], IS_MANAGED_ROOT(root)));
}

enum reserve ledger_reserve(int slot, pid_t pid, uint32_t root, uint32_t parent, uint32_t handle, uint32_t class,
                            uint64_t bytes, struct ledger_object **out)
{
    struct tenant *tenant = &tenants[slot];
    const struct ledger_object *above = ledger_find(root, parent);

    if (ledger_find(root, handle) || (handle == parent && handle != root))
        return RESERVE_TAKEN;
    if (bytes && bytes > ledger_room(tenant, IS_MANAGED_ROOT(root)))
        return RESERVE_OVER_QUOTA;
    if (tenant->objects >= LEDGER_TENANT_OBJECTS || (!free_count && ledger->object_end == LEDGER_OBJECTS))
        return RESERVE_TABLE_FULL;
    uint32_t i = free_count ? free_list[--free_count] : ledger->object_end;
    ledger->objects[i] = (struct ledger_object){.tenant = (uint32_t)slot,
                                                .root = root,
                                                .parent = parent,
                                                .handle = handle,
                                                .class = class,
                                                .pid = pid,
                                                .gpu = above ? above->gpu : 0,
                                                .bytes = bytes,
                                                .next_twin = i};
    __atomic_store_n(&ledger->objects[i].state, OBJECT_RESERVED, __ATOMIC_RELEASE);
    if (i == ledger->object_end)
        __atomic_store_n(&ledger->object_end, i + 1, __ATOMIC_RELEASE);
    links[i] = (struct links){.previous_twin = i, .serial = ++last_serial};
    index_add(i);
    link_child(i);
    list_add(i);
    account(&ledger->objects[i], 1);
    *out = &ledger->objects[i];
    return RESERVE_OK;
}

static void set_bytes(struct ledger_object *object, uint64_t bytes)
{
    account(object, -1);
    object->bytes = bytes;
    account(object, 1);
}

bool ledger_commit(struct ledger_object *object, uint64_t bytes)
{
    struct tenant *tenant = &tenants[object->tenant];
    bool grew = bytes > object->bytes;

    if (bytes != object->bytes) /* the driver rounds up to its granule, and says by how much */
        set_bytes(object, bytes);
    object->state = OBJECT_HELD;
    if (!grew || (device_bytes(tenant) <= tenant->memory && tenant->used <= ledger_limit(tenant)))
        return true;
    publish_refusal(tenant, object->pid, bytes, 0);
    return false;
}

bool ledger_set_managed(int slot, pid_t pid, uint64_t bytes)
{
    uint32_t root = MANAGED_ROOTS | (uint32_t)pid;
    struct ledger_object *object = ledger_find(root, root);

    if (object && object->tenant != (uint32_t)slot) { /* that process ended, and this has its number */
        ledger_free(root, root);
        object = NULL;
    }
    if (!object) {
        if (bytes && ledger_reserve(slot, pid, root, 0, root, 0, bytes, &object) != RESERVE_OK) {
            ledger_tell_refusal(slot, pid, root, bytes);
            return false;
        }
        if (object)
            object->state = OBJECT_HELD;
        return true;
    }
    uint64_t room = ledger_room(&tenants[slot], true), more = bytes > object->bytes ? bytes - object->bytes : 0;
    if (more > room) {
        publish_refusal(&tenants[slot], pid, more, room);
        return false;
    }
    if (bytes)
        set_bytes(object, bytes);
    else
        ledger_free(root, root);
    return true;
}

void ledger_join_twins(struct ledger_object *object, struct ledger_object *of)
{
    uint32_t next = of->next_twin;

    of->next_twin = position(object);
    object->next_twin = next;
    links[position(object)].previous_twin = position(of);
    links[next].previous_twin = position(object);
    object->state = OBJECT_HELD;
}

/* Out of its ring; what it carried is carried by the next name. */
static void leave_twins(struct ledger_object *object)
{
    uint32_t i = position(object), before = links[i].previous_twin;

    if (object->next_twin == i)
        return;
    if (object->bytes) {
        struct ledger_object *heir = &ledger->objects[object->next_twin];
        account(object, -1);
        account(heir, -1);
        heir->bytes = object->bytes; /* first: a guard killed in between counts twice rather than not at all */
        object->bytes = 0;
        account(heir, 1);
        account(object, 1);
    }
    ledger->objects[before].next_twin = object->next_twin;
    links[object->next_twin].previous_twin = before;
    object->next_twin = links[i].previous_twin = i;
}

void ledger_cancel(struct ledger_object *object)
{
    uint32_t i = position(object);

    leave_twins(object);
    account(object, -1);
    list_remove(i);
    unlink_child(i);
    index_remove(i);
    object->state = OBJECT_FREE;
    free_list[free_count++] = i;
}

static void cancel_tree(struct ledger_object *object)
{
    uint32_t *first = &links[position(object)].first_child;

    while (*first)
        cancel_tree(at(*first));
    ledger_cancel(object);
}

void ledger_free(uint32_t root, uint32_t handle)
{
    struct ledger_object *object = ledger_find(root, handle);

    if (object)
        cancel_tree(object);
}

void ledger_note_ring(struct ledger_object *channel, uint32_t userd, uint64_t offset, int file)
{
    channel->userd = userd;
    channel->userd_offset = offset;
    channel->file = file;
}

uint32_t ledger_device_of(const struct ledger_object *object)
{
    for (int depth = 0; object && depth < 16; depth++) {
        if (object->class == NV01_DEVICE_0)
            return object->handle;
        object = object->handle == object->root ? NULL : ledger_find(object->root, object->parent);
    }
    return 0;
}

static bool note_scheduled(struct ledger_object *object, uint64_t now)
{
    if (!NV_CLASS_IS_CHANNEL(object->class) || object->scheduled_ns)
        return false;
    object->scheduled_ns = now;
    tenants[object->tenant].channel_changes++;
    return true;
}

bool ledger_note_scheduled(uint32_t root, uint32_t handle)
{
    struct ledger_object *object = ledger_find(root, handle);
    uint64_t now = monotonic_ns();

    if (!object)
        return false;
    bool any = note_scheduled(object, now);
    for (uint32_t link = links[position(object)].first_child; link; link = links[link - 1].next)
        any |= note_scheduled(at(link), now);
    return any;
}
