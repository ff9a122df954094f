#define _GNU_SOURCE
#include "work.h"

#include <string.h>

#include "backend.h"
#include "ledger.h"
#include "reach.h"
#include "util.h"

#define LINES_MAX 512     /* more channels than anybody who sleeps has: each costs 1 us to look at */
#define COLD_LOOKS 4      /* of those never used yet so many are looked at in turn */
#define QUESTIONS_MAX 8   /* at once; 0.14 ms each */
#define BUSY_CHECK_US 100 /* less is too short for the driver to find out, measured */

/* A channel and its ring. */
struct line {
    uint64_t serial; /* of its ledger object */
    struct channel channel;
    struct ring ring;
    uint32_t device, last, proven; /* put: when looked at last; when the driver said that all of it is done */
    pid_t pid;
    int file;
    bool used; /* something was handed in while this guard looked */
};

struct watched {
    struct line *lines;
    int count, next_cold;
    uint32_t changes; /* tenants[].channel_changes when last looked at */
    bool seen, fresh; /* fresh: some are too new to be looked at */
};

struct work {
    int gpu;
    struct watched tenants[LEDGER_TENANTS];
};

struct work *work_open(int gpu)
{
    struct work *work = calloc(1, sizeof *work);

    if (!work)
        die("out of memory");
    work->gpu = gpu;
    return work;
}

static void close_lines(struct work *work, struct line *lines, int count)
{
    for (int i = 0; i < count; i++)
        if (lines[i].ring.put)
            backend->close_ring(work->gpu, &lines[i].ring);
}

static void forget_tenant(struct work *work, struct watched *watched)
{
    close_lines(work, watched->lines, watched->count);
    free(watched->lines);
    *watched = (struct watched){0};
}

void work_close(struct work *work)
{
    for (int slot = 0; slot < LEDGER_TENANTS; slot++)
        forget_tenant(work, &work->tenants[slot]);
    free(work);
}

/* --- keeping up with the ledger --- */

/* Is the line's channel still there? Under ledger_lock(). */
static bool is_current(const struct line *line)
{
    const struct ledger_object *object = ledger_find(line->channel.root, line->channel.handle);
    return object && ledger_serial(object) == line->serial;
}

static struct line describe(const struct ledger_object *channel)
{
    const struct ledger_object *root = ledger_find(channel->root, channel->root);

    return (struct line){.serial = ledger_serial(channel),
                         .channel = {channel->root, channel->handle},
                         .device = ledger_device_of(channel),
                         .pid = root ? root->pid : channel->pid,
                         .file = root ? root->file : -1};
}

/*
 * The tenant's channels as they are now; those known already keep what is known. The ledger puts new ones first and
 * keeps the order of the others, so one walk over both finds them. Returns -1 where there are too many.
 */
static int list_lines(struct watched *watched, int slot, struct line *out, bool *fresh)
{
    uint64_t ripe = monotonic_ns() - backend->settle_ns;
    int count = 0, old = 0;

    ledger_lock();
    watched->changes = tenants[slot].channel_changes;
    for (const struct ledger_object *channel = ledger_first_channel(slot); channel;
         channel = ledger_next_listed(channel)) {
        if (channel->state != OBJECT_HELD || !channel->scheduled_ns)
            continue;
        if (channel->scheduled_ns > ripe) {
            *fresh = true;
            continue;
        }
        if (count == LINES_MAX) {
            count = -1;
            break;
        }
        while (old < watched->count && !is_current(&watched->lines[old]))
            old++;
        bool known = old < watched->count && watched->lines[old].serial == ledger_serial(channel);
        out[count++] = known ? watched->lines[old++] : describe(channel);
    }
    ledger_unlock();
    return count;
}

/* The file that a client lives on, taken from its process for a moment. */
static int take_file(const struct line *line)
{
    CLEANUP_FD int pidfd = reach_pidfd(line->pid);
    int fd = pidfd < 0 || line->file < 0 ? -1 : reach_descriptor(pidfd, line->pid, line->pid, line->file);

    if (fd >= 0 && backend->kind(fd) != FILE_CONTROL) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static struct ring_place find_ring(const struct line *line)
{
    struct ring_place place = {0};

    ledger_lock();
    if (is_current(line)) {
        const struct ledger_object *channel = ledger_find(line->channel.root, line->channel.handle);
        const struct ledger_object *memory = ledger_find(channel->root, channel->userd);
        place = (struct ring_place){channel->userd, channel->userd_offset, memory ? memory->bytes : 0};
    }
    ledger_unlock();
    return place;
}

static bool open_line(struct work *work, struct line *line)
{
    CLEANUP_FD int fd = take_file(line);
    struct ring_place place = find_ring(line);

    if (fd < 0 || !backend->open_ring(work->gpu, fd, &line->channel, &place, &line->ring))
        return false;
    line->last = *line->ring.put;
    line->proven = line->last - 1; /* not known to be done */
    line->used = line->last > 1;   /* before this guard looked */
    return true;
}

/* Rings of channels that are gone are not looked at again. */
static void close_dropped(struct work *work, struct watched *watched, const struct line *kept, int count)
{
    int at = 0;

    for (int i = 0; i < watched->count; i++) {
        while (at < count && kept[at].serial != watched->lines[i].serial && !kept[at].ring.put)
            at++; /* a new one */
        if (at < count && kept[at].serial == watched->lines[i].serial)
            at++;
        else
            close_lines(work, &watched->lines[i], 1);
    }
}

static void refresh_tenant(struct work *work, int slot)
{
    struct watched *watched = &work->tenants[slot];
    struct line *lines = calloc(LINES_MAX, sizeof *lines);
    bool fresh = false;

    if (!lines)
        return; /* as before, until there is memory */
    int count = list_lines(watched, slot, lines, &fresh);
    close_dropped(work, watched, lines, count);
    free(watched->lines);
    watched->lines = lines;
    watched->count = count < 0 ? 0 : count;
    watched->fresh = fresh;
    watched->seen = count >= 0 && !fresh;
    for (int i = 0; i < count; i++)
        if (!lines[i].ring.put && !open_line(work, &lines[i]))
            watched->seen = false;
}

void work_refresh(struct work *work)
{
    for (int slot = 0; slot < LEDGER_TENANTS; slot++) {
        struct watched *watched = &work->tenants[slot];
        ledger_lock();
        bool ours = tenants[slot].live && tenants[slot].gpu == work->gpu && tenants[slot].channels;
        bool changed = watched->fresh || watched->changes != tenants[slot].channel_changes;
        ledger_unlock();
        if (!ours && watched->lines)
            forget_tenant(work, watched);
        if (ours && changed)
            refresh_tenant(work, slot);
    }
}

/* --- looking --- */

bool work_is_seen(const struct work *work, int slot) { return work->tenants[slot].seen; }

/* Channels in use, and some of the others in turn: a context has 20 and uses 3 of them. What can't be seen may be. */
static bool any_line(struct watched *watched, bool (*is)(struct line *))
{
    bool any = false;

    if (!watched->seen)
        return true;
    for (int i = 0; i < watched->count; i++)
        if (watched->lines[i].used && is(&watched->lines[i]))
            any = true;
    for (int i = 0; i < COLD_LOOKS && watched->count; i++) {
        watched->next_cold = (watched->next_cold + 1) % watched->count;
        struct line *line = &watched->lines[watched->next_cold];
        if (!line->used && is(line))
            line->used = any = true;
    }
    return any;
}

static bool is_pending(struct line *line) { return *line->ring.put != line->proven; }

bool work_is_pending(struct work *work, int slot) { return any_line(&work->tenants[slot], is_pending); }

static bool has_moved(struct line *line)
{
    uint32_t put = *line->ring.put;
    bool moved = put != line->last || put != *line->ring.get;

    line->last = put;
    return moved;
}

bool work_moved(struct work *work, int slot) { return any_line(&work->tenants[slot], has_moved); }

static bool is_idle(const struct line *line, int fd)
{
    struct nv0000_idle_channels question = {.device = line->device,
                                            .channel = line->channel.handle,
                                            .count = 1,
                                            .clients = (uintptr_t)&line->channel.root,
                                            .devices = (uintptr_t)&line->device,
                                            .channels = (uintptr_t)&line->channel.handle,
                                            .flags = NVOS30_FLAGS_BEHAVIOR_FORCE_BUSY_CHECK |
                                                     NVOS30_FLAGS_CHANNEL_LIST | NVOS30_FLAGS_IDLE_ALL_ENGINES,
                                            .timeout_us = BUSY_CHECK_US};
    struct nvos54 call = {.client = line->channel.root,
                          .object = line->channel.root,
                          .command = NV0000_CTRL_CMD_IDLE_CHANNELS,
                          .params = (uintptr_t)&question,
                          .params_size = sizeof question};

    return backend->perform(fd, line->pid, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), &call) == 0 &&
           call.status == NV_OK;
}

/* What was handed in is read before the driver is asked: what comes in between is seen as new. */
static bool prove_line(struct line *line)
{
    uint32_t put = *line->ring.put;

    if (put == line->proven)
        return true;
    if (put != *line->ring.get)
        return false;
    CLEANUP_FD int fd = take_file(line);
    if (fd < 0 || !is_idle(line, fd))
        return false;
    line->proven = put;
    return true;
}

bool work_prove_idle(struct work *work, int slot)
{
    struct watched *watched = &work->tenants[slot];
    int questions = 0;

    for (int i = 0; watched->seen && i < watched->count; i++) {
        if (*watched->lines[i].ring.put == watched->lines[i].proven)
            continue;
        /* those proven now need not be asked next time */
        if (questions++ == QUESTIONS_MAX || !prove_line(&watched->lines[i]))
            return false;
    }
    return watched->seen;
}
