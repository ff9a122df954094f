#define _GNU_SOURCE
#include "publish.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "reach.h"
#include "rm_abi.h"
#include "util.h"

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
        *spare = (struct vgpu_process_row){.pid = (uint32_t)pid, .pid_inside = (uint32_t)reach_pid_inside(pid)};
    return spare;
}

/* Between page_begin() and page_end(). */
static void publish_memory(const struct tenant *tenant)
{
    struct vgpu_slice_page *page = tenant->page;

    page->memory_used = tenant->used;
    page->memory_managed = tenant->managed;
    page->memory_limit = ledger_limit(tenant);
    page->memory_free = ledger_room(tenant, false);
    if (page->memory_used > page->memory_peak)
        page->memory_peak = page->memory_used;
}

bool publish_open(struct tenant *tenant, int fd)
{
    void *page = mmap(NULL, sizeof *tenant->page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (page == MAP_FAILED)
        return false;
    publish_close(tenant);
    tenant->page = page;
    return true;
}

void publish_close(struct tenant *tenant)
{
    if (tenant->page)
        munmap(tenant->page, sizeof *tenant->page);
    tenant->page = NULL;
}

void publish_quota(const struct tenant *tenant)
{
    struct vgpu_slice_page *page = tenant->page;

    /* A guard killed while it wrote left the sequence odd, and readers waiting. */
    if (page->sequence & 1)
        page->sequence++;
    page_begin(page);
    page->magic = VGPU_PAGE_MAGIC;
    page->version = VGPU_PAGE_VERSION;
    page->memory_quota = tenant->memory;
    page->core_millipercent = tenant->core_millipercent;
    page->policy = tenant->policy;
    page->guard_pid = (uint32_t)getpid();
    publish_memory(tenant);
    page_end(page);
}

void publish_anew(const struct tenant *tenant)
{
    struct vgpu_slice_page *page = tenant->page;

    page_begin(page);
    publish_memory(tenant);
    page->process_rows = 0;
    memset(page->processes, 0, sizeof page->processes);
    page_end(page);
}

void publish_change(const struct tenant *tenant, const struct ledger_object *object, int sign)
{
    struct vgpu_slice_page *page = tenant->page;

    if (!page)
        return;
    page_begin(page);
    publish_memory(tenant);
    struct vgpu_process_row *row = row_of(page, object->pid, sign > 0);
    if (row) {
        row->memory += (uint64_t)sign * object->bytes;
        row->channels += (uint32_t)(sign * NV_CLASS_IS_CHANNEL(object->class));
        if (!row->memory && !row->channels)
            row->pid = 0;
    }
    page_end(page);
}

void publish_refusal(const struct tenant *tenant, pid_t pid, uint64_t bytes, uint64_t room)
{
    struct vgpu_slice_page *page = tenant->page;

    page_begin(page);
    page->refusals++;
    page->refused_bytes = bytes;
    page->refused_free = room;
    page->refused_at_ns = realtime_ns();
    page->refused_pid = (uint32_t)pid;
    page_end(page);
}

void publish_tier(const struct tenant *tenant, uint32_t tier)
{
    if (!tenant->page)
        return;
    page_begin(tenant->page);
    tenant->page->tier = tier;
    page_end(tenant->page);
}

void publish_active(const struct tenant *tenant, pid_t pid)
{
    struct vgpu_slice_page *page = tenant->page;
    uint32_t rows = page ? __atomic_load_n(&page->process_rows, __ATOMIC_RELAXED) : 0;

    for (uint32_t i = 0; i < rows && i < VGPU_PAGE_PROCESSES; i++)
        if (page->processes[i].pid && (!pid || page->processes[i].pid == (uint32_t)pid)) {
            page_begin(page);
            page->processes[i].active_ns = realtime_ns();
            page_end(page);
        }
}

void publish_on(const struct tenant *tenant, bool on, uint64_t on_ns)
{
    if (!tenant->page)
        return;
    page_begin(tenant->page);
    tenant->page->channels_on = on;
    tenant->page->on_ns += on_ns;
    page_end(tenant->page);
}
