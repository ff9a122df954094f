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

#include "rm_abi.h"
#include "util.h"

struct ledger_file *ledger;
struct tenant tenants[LEDGER_TENANTS];

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Index over ledger->objects by (root, handle): chains of positions + 1, rebuilt at start. */
#define BUCKETS (1u << 17)
static uint32_t buckets[BUCKETS], chain[LEDGER_OBJECTS], free_list[LEDGER_OBJECTS], free_count;

void ledger_lock(void) { pthread_mutex_lock(&mutex); }
void ledger_unlock(void) { pthread_mutex_unlock(&mutex); }

static uint32_t bucket(uint32_t root, uint32_t handle)
{
    uint64_t key = ((uint64_t)root << 32 | handle) * 0x9E3779B97F4A7C15ull;
    return (uint32_t)(key >> 47) & (BUCKETS - 1);
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

/* --- the page that tenant and daemon read --- */

static void page_begin(struct vgpu_slice_page *page) { __atomic_add_fetch(&page->sequence, 1, __ATOMIC_ACQ_REL); }
static void page_end(struct vgpu_slice_page *page) { __atomic_add_fetch(&page->sequence, 1, __ATOMIC_RELEASE); }

static struct vgpu_process_row *row_of(struct vgpu_slice_page *page, pid_t pid, bool make)
{
    struct vgpu_process_row *spare = NULL;
    /* read once: whoever may write to the page must not change it between check and use */
    uint32_t rows = __atomic_load_n(&page->process_rows, __ATOMIC_RELAXED);

    for (uint32_t i = 0; i < rows && i < VGPU_PAGE_PROCESSES; i++) {
        if (page->processes[i].pid == (uint32_t)pid)
            return &page->processes[i];
        if (!page->processes[i].pid && !spare)
            spare = &page->processes[i];
    }
    if (!make)
        return NULL;
    if (!spare && rows < VGPU_PAGE_PROCESSES) {
        spare = &page->processes[rows];
        page->process_rows = rows + 1;
    }
    if (spare)
        *spare = (struct vgpu_process_row){.pid = (uint32_t)pid};
    return spare;
}

/* Bytes and channels of one object, onto (sign 1) or off (sign -1) its tenant's and process' account. */
static void account(const struct ledger_object *object, int sign)
{
    struct tenant *tenant = &tenants[object->tenant];
    struct vgpu_slice_page *page = tenant->page;
    bool channel = NV_CLASS_IS_CHANNEL(object->class);

    tenant->objects += (uint32_t)sign;
    tenant->used += (uint64_t)sign * object->bytes;
    if (channel)
        tenant->channels += (uint32_t)sign;
    if (!page)
        return;
    page_begin(page);
    page->memory_used = tenant->used;
    if (page->memory_used > page->memory_peak)
        page->memory_peak = page->memory_used;
    struct vgpu_process_row *row = row_of(page, object->pid, sign > 0);
    if (row) {
        row->memory += (uint64_t)sign * object->bytes;
        row->channels += (uint32_t)(sign * channel);
        if (!row->memory && !row->channels)
            row->pid = 0;
    }
    page_end(page);
}

/* --- opening --- */

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
}

/* --- tenants --- */

static bool map_page(struct tenant *tenant, int fd)
{
    void *page = mmap(NULL, sizeof *tenant->page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (page == MAP_FAILED)
        return false;
    if (tenant->page)
        munmap(tenant->page, sizeof *tenant->page);
    tenant->page = page;
    return true;
}

static void recount(int slot)
{
    struct tenant *tenant = &tenants[slot];
    struct vgpu_slice_page *page = tenant->page;

    tenant->objects = tenant->channels = 0;
    tenant->used = 0;
    page_begin(page);
    page->memory_used = 0;
    page->process_rows = 0;
    memset(page->processes, 0, sizeof page->processes);
    page_end(page);
    for (uint32_t i = 0; i < ledger->object_end; i++)
        if (ledger->objects[i].state != OBJECT_FREE && ledger->objects[i].tenant == (uint32_t)slot)
            account(&ledger->objects[i], 1);
}

bool ledger_set_tenant(int slot, const char *id, int gpu, uint64_t memory, uint32_t millipercent, uint32_t policy,
                       int page_fd)
{
    struct tenant *tenant = &tenants[slot];
    bool fresh = !tenant->live;

    if (fresh)
        *tenant = (struct tenant){0};
    if (page_fd >= 0 && !map_page(tenant, page_fd))
        return false;
    if (!tenant->page)
        return false;
    tenant->gpu = gpu;
    tenant->memory = memory;
    tenant->core_millipercent = millipercent;
    tenant->policy = policy;
    snprintf(tenant->id, sizeof tenant->id, "%s", id);
    tenant->live = true;

    struct vgpu_slice_page *page = tenant->page;
    /* A guard killed while it wrote left the sequence odd, and readers waiting. */
    if (page->sequence & 1)
        page->sequence++;
    page_begin(page);
    page->magic = VGPU_PAGE_MAGIC;
    page->version = VGPU_PAGE_VERSION;
    page->memory_quota = memory;
    page->core_millipercent = millipercent;
    page->policy = policy;
    page->guard_pid = (uint32_t)getpid();
    page_end(page);
    if (fresh)
        recount(slot);
    return true;
}

void ledger_remove_tenant(int slot)
{
    for (uint32_t i = 0; i < ledger->object_end; i++)
        if (ledger->objects[i].state != OBJECT_FREE && ledger->objects[i].tenant == (uint32_t)slot)
            ledger_cancel(&ledger->objects[i]);
    if (tenants[slot].page)
        munmap(tenants[slot].page, sizeof *tenants[slot].page);
    tenants[slot] = (struct tenant){0};
}

void ledger_set_tier(int slot, uint32_t tier)
{
    if (!tenants[slot].page)
        return;
    page_begin(tenants[slot].page);
    tenants[slot].page->tier = tier;
    page_end(tenants[slot].page);
}

void ledger_note_on(int slot, bool on, uint64_t on_ns)
{
    if (!tenants[slot].page)
        return;
    page_begin(tenants[slot].page);
    tenants[slot].page->channels_on = on;
    tenants[slot].page->on_ns += on_ns;
    page_end(tenants[slot].page);
}

/* --- objects --- */

int ledger_root_owner(uint32_t root)
{
    struct ledger_object *object = ledger_find(root, root);
    return object ? (int)object->tenant : -1;
}

bool ledger_claim_root(int slot, pid_t pid, uint32_t root)
{
    struct ledger_object *object = ledger_find(root, root);

    if (object && object->tenant == (uint32_t)slot)
        return true;
    if (object)
        ledger_free(root, root);
    if (ledger_reserve(slot, pid, root, 0, root, NV01_ROOT_CLIENT, 0, &object) != RESERVE_OK)
        return false;
    object->state = OBJECT_HELD;
    return true;
}

static void note_refusal(struct tenant *tenant, pid_t pid, uint64_t bytes)
{
    struct vgpu_slice_page *page = tenant->page;

    page_begin(page);
    page->refusals++;
    page->refused_bytes = bytes;
    page->refused_free = tenant->memory > tenant->used ? tenant->memory - tenant->used : 0;
    page->refused_at_ns = realtime_ns();
    page->refused_pid = (uint32_t)pid;
    page_end(page);
}

enum reserve ledger_reserve(int slot, pid_t pid, uint32_t root, uint32_t parent, uint32_t handle, uint32_t class,
                            uint64_t bytes, struct ledger_object **out)
{
    struct tenant *tenant = &tenants[slot];

    if (bytes && (tenant->used > tenant->memory || bytes > tenant->memory - tenant->used)) {
        note_refusal(tenant, pid, bytes);
        return RESERVE_OVER_QUOTA;
    }
    if (tenant->objects >= LEDGER_TENANT_OBJECTS || (!free_count && ledger->object_end == LEDGER_OBJECTS))
        return RESERVE_TABLE_FULL;
    uint32_t i = free_count ? free_list[--free_count] : ledger->object_end;
    ledger->objects[i] = (struct ledger_object){.tenant = (uint32_t)slot,
                                                .root = root,
                                                .parent = parent,
                                                .handle = handle,
                                                .class = class,
                                                .pid = pid,
                                                .bytes = bytes};
    __atomic_store_n(&ledger->objects[i].state, OBJECT_RESERVED, __ATOMIC_RELEASE);
    if (i == ledger->object_end)
        __atomic_store_n(&ledger->object_end, i + 1, __ATOMIC_RELEASE);
    index_add(i);
    account(&ledger->objects[i], 1);
    *out = &ledger->objects[i];
    return RESERVE_OK;
}

void ledger_commit(struct ledger_object *object, uint32_t handle, uint64_t bytes)
{
    if (handle != object->handle) { /* the tenant left the choice to the driver */
        uint32_t i = (uint32_t)(object - ledger->objects);
        index_remove(i);
        object->handle = handle;
        index_add(i);
    }
    if (bytes != object->bytes) { /* the driver rounds up to its granule, and says by how much */
        account(object, -1);
        object->bytes = bytes;
        account(object, 1);
    }
    object->state = OBJECT_HELD;
}

void ledger_cancel(struct ledger_object *object)
{
    uint32_t i = (uint32_t)(object - ledger->objects);

    account(object, -1);
    index_remove(i);
    object->state = OBJECT_FREE;
    free_list[free_count++] = i;
}

static void free_children(uint32_t root, uint32_t parent)
{
    for (uint32_t i = 0; i < ledger->object_end; i++) {
        struct ledger_object *object = &ledger->objects[i];
        if (object->state == OBJECT_FREE || object->root != root || object->parent != parent || object->handle == root)
            continue;
        uint32_t handle = object->handle;
        ledger_cancel(object);
        free_children(root, handle);
    }
}

void ledger_free(uint32_t root, uint32_t handle)
{
    struct ledger_object *object = ledger_find(root, handle);

    if (handle == root) {
        for (uint32_t i = 0; i < ledger->object_end; i++)
            if (ledger->objects[i].state != OBJECT_FREE && ledger->objects[i].root == root)
                ledger_cancel(&ledger->objects[i]);
        return;
    }
    if (!object)
        return;
    uint32_t class = object->class;
    ledger_cancel(object);
    if (class != NV01_MEMORY_LOCAL_USER) /* memory has no children, and is what gets freed most */
        free_children(root, handle);
}

void ledger_note_scheduled(uint32_t root, uint32_t handle)
{
    for (uint32_t i = 0; i < ledger->object_end; i++) {
        struct ledger_object *object = &ledger->objects[i];
        if (object->state == OBJECT_FREE || object->root != root || !NV_CLASS_IS_CHANNEL(object->class))
            continue;
        if ((object->handle == handle || object->parent == handle) && !object->scheduled_ns)
            object->scheduled_ns = monotonic_ns();
    }
}

void ledger_free_process(pid_t pid)
{
    for (uint32_t i = 0; i < ledger->object_end; i++) {
        struct ledger_object *object = &ledger->objects[i];
        if (object->state != OBJECT_FREE && object->pid == pid && object->handle == object->root)
            ledger_free(object->root, object->root);
    }
}
