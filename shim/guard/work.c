#define _GNU_SOURCE
#include "work.h"

#include <string.h>

#include "backend.h"
#include "inquiry.h"
#include "ledger.h"
#include "util.h"

#define LINES_MAX 512 /* more channels than anybody who sleeps has: each costs 1 us to look at */
#define COLD_LOOKS 4  /* of those never used yet so many are looked at in turn */

/* A channel and its ring. */
struct line {
    uint64_t serial; /* of its ledger object */
    struct channel channel;
    struct ring ring;
    struct ring_place place;
    uint32_t device, last; /* last: how far it was filled when looked at last */
    uint32_t noted;        /* and when it was last looked at for its tenant's page */
    pid_t pid;
    int file;
    bool used;   /* something was handed in while this guard looked */
    bool proven; /* the driver said that it is idle, and nothing was handed in since */
    bool unseen; /* its ring can't be had */
};

/* What a question was about; positions in a ring come round again, so they mean something only for a moment. */
struct asked {
    uint64_t serial;
    uint32_t put;
};

struct watched {
    struct line *lines;
    int count, next_cold;
    uint32_t changes; /* tenants[].channel_changes when last looked at */
    bool fresh;       /* some are too new to be looked at */
    bool complete;    /* all are here: none is too new, nor are there too many */
    bool too_many;
    bool seen;   /* and every ring is open */
    bool asking; /* an answer is to be taken, though it be about a tenant that is gone */
    bool busy;   /* so was the last answer */
    bool left;   /* the tenant went off since it was asked */
    struct asked asked[INQUIRY_MAX];
};

struct work {
    int gpu, slots_end; /* no tenant is beyond */
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
    *watched = (struct watched){.asking = watched->asking};
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

/* Under ledger_lock(). */
static struct line describe(const struct ledger_object *channel)
{
    const struct ledger_object *memory = ledger_find(channel->root, channel->userd);

    return (struct line){.serial = ledger_serial(channel),
                         .channel = {channel->root, channel->handle},
                         .device = ledger_device_of(channel),
                         .place = {channel->userd, channel->userd_offset, memory ? memory->bytes : 0},
                         .pid = channel->pid,
                         .file = channel->file};
}

/*
 * The tenant's channels as they are now; of those known already what is known, and the ring, moves over. The ledger
 * puts new ones first and keeps the order of the others, so one walk over both finds them. Returns -1 where there are
 * too many.
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
        out[count++] = known ? watched->lines[old] : describe(channel);
        if (known)
            watched->lines[old++].ring = (struct ring){0};
    }
    ledger_unlock();
    return count;
}

static void open_line(struct work *work, struct line *line)
{
    line->unseen = !backend->open_ring(work->gpu, &line->channel, &line->place, &line->ring);
    if (line->unseen)
        return;
    line->last = *line->ring.put;
    line->used = line->last > 1; /* before this guard looked */
    line->noted = 0;             /* rings begin there: what came before is activity too */
}

static bool all_seen(const struct watched *watched)
{
    for (int i = 0; i < watched->count; i++)
        if (!watched->lines[i].ring.put)
            return false;
    return true;
}

static void refresh_tenant(struct work *work, int slot)
{
    struct watched *watched = &work->tenants[slot];
    struct line *lines = calloc(LINES_MAX, sizeof *lines);
    bool fresh = false;

    if (!lines)
        return; /* as before, until there is memory */
    int count = list_lines(watched, slot, lines, &fresh);
    close_lines(work, watched->lines, watched->count); /* those of channels that are gone */
    if (count < 0)
        close_lines(work, lines, LINES_MAX);
    free(watched->lines);
    watched->lines = lines;
    watched->count = count < 0 ? 0 : count;
    watched->fresh = fresh;
    watched->too_many = count < 0;
    watched->complete = count >= 0 && !fresh;
    watched->seen = watched->complete && all_seen(watched);
    if (slot >= work->slots_end)
        work->slots_end = slot + 1;
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

/* --- asking --- */

static struct question question_about(const struct line *line)
{
    return (struct question){.channel = line->channel,
                             .device = line->device,
                             .userd = line->place.memory,
                             .pid = line->pid,
                             .file = line->file};
}

static void post(struct work *work, int slot, enum inquiry_kind kind, struct line *const *lines, int count)
{
    struct watched *watched = &work->tenants[slot];
    struct question questions[INQUIRY_MAX];

    for (int i = 0; i < count; i++) {
        questions[i] = question_about(lines[i]);
        watched->asked[i] = (struct asked){lines[i]->serial, lines[i]->last};
    }
    watched->left = false;
    watched->asking = inquiry_post(slot, kind, work->gpu, questions, count);
}

static struct line *find_line(struct watched *watched, uint64_t serial)
{
    for (int i = 0; i < watched->count; i++)
        if (watched->lines[i].serial == serial)
            return &watched->lines[i];
    return NULL;
}

static void take_answer(struct work *work, struct watched *watched, enum inquiry_kind kind, const struct asked *asked,
                        bool yes)
{
    struct line *line = find_line(watched, asked->serial);

    if (!line || (kind == INQUIRY_IDLE && watched->left))
        return;
    if (kind == INQUIRY_IDLE) {
        line->proven |= yes && line->last == asked->put; /* else it was used since */
        watched->busy |= !yes;
    } else if (yes) {
        open_line(work, line);
    } else {
        line->unseen = true;
    }
}

static void take_answers(struct work *work, int slot)
{
    struct watched *watched = &work->tenants[slot];
    struct question questions[INQUIRY_MAX];
    enum inquiry_kind kind;
    int count = inquiry_take(slot, &kind, questions);

    if (!count)
        return;
    for (int i = 0; i < count; i++)
        take_answer(work, watched, kind, &watched->asked[i], questions[i].yes);
    watched->asking = false;
}

static bool same_memory(const struct line *a, const struct line *b)
{
    return a->channel.root == b->channel.root && a->place.memory == b->place.memory;
}

/* The client of `line` lets the guard see a piece of memory once: for all the rings in it. */
static bool is_shared(const struct watched *watched, const struct line *line)
{
    for (int i = 0; i < watched->count; i++)
        if (watched->lines[i].ring.put && same_memory(&watched->lines[i], line))
            return true;
    return false;
}

static void see_more(struct work *work, int slot)
{
    struct watched *watched = &work->tenants[slot];
    struct line *first = NULL;

    for (int i = 0; i < watched->count; i++) {
        struct line *line = &watched->lines[i];
        if (line->ring.put || line->unseen)
            continue;
        if (is_shared(watched, line))
            open_line(work, line);
        else if (!first)
            first = line;
    }
    watched->seen = watched->complete && all_seen(watched);
    if (first)
        post(work, slot, INQUIRY_SHARE, &first, 1);
}

void work_go_on(struct work *work)
{
    for (int slot = 0; slot < work->slots_end; slot++) {
        struct watched *watched = &work->tenants[slot];
        if (watched->asking)
            take_answers(work, slot);
        if (watched->lines && !watched->seen && !watched->asking)
            see_more(work, slot);
    }
}

/* --- looking --- */

bool work_is_seen(const struct work *work, int slot) { return work->tenants[slot].seen; }

/* Channels in use, and some of the others in turn: a context has 20 and uses 3 of them. What can't be seen may be. */
static bool any_line(struct watched *watched, bool (*is)(struct line *))
{
    bool any = false;

    if (!watched->seen)
        return watched->lines != NULL;
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

/* While it is off nothing is fetched, and a full ring takes no more: so it can't come round to where it was. */
static bool is_pending(struct line *line) { return !line->proven || *line->ring.put != line->last; }

bool work_is_pending(struct work *work, int slot) { return any_line(&work->tenants[slot], is_pending); }

static bool has_moved(struct line *line)
{
    uint32_t put = *line->ring.put;
    bool moved = put != line->last || put != *line->ring.get;

    line->last = put;
    line->proven &= !moved;
    return moved;
}

bool work_moved(struct work *work, int slot) { return any_line(&work->tenants[slot], has_moved); }

enum work_state work_ask(struct work *work, int slot)
{
    struct watched *watched = &work->tenants[slot];
    struct line *lines[INQUIRY_MAX];
    bool moved = false, busy = watched->busy;
    int count = 0;

    if (!watched->seen)
        return WORK_BUSY;
    if (watched->asking)
        return WORK_ASKED;
    watched->busy = false;
    for (int i = 0; i < watched->count; i++) {
        struct line *line = &watched->lines[i];
        bool used = has_moved(line);
        line->used |= used;
        moved |= used;
        if (!line->proven && count < INQUIRY_MAX)
            lines[count++] = line;
    }
    if (moved || busy)
        return WORK_BUSY;
    if (!count)
        return WORK_IDLE;
    post(work, slot, INQUIRY_IDLE, lines, count);
    return WORK_ASKED;
}

static bool was_active(struct line *line)
{
    uint32_t put = line->ring.put ? *line->ring.put : line->noted;
    bool active = put != line->noted || (line->ring.put && put != *line->ring.get);

    line->noted = put;
    return active;
}

bool work_note_activity(struct work *work)
{
    bool all = true;

    work_go_on(work); /* rings that nobody needed to look into so far */
    for (int slot = 0; slot < work->slots_end; slot++) {
        struct watched *watched = &work->tenants[slot];
        all &= !watched->asking || watched->seen;
        if (watched->too_many)
            ledger_note_active(slot, 0);
        for (int i = 0; i < watched->count; i++)
            if (was_active(&watched->lines[i]))
                ledger_note_active(slot, watched->lines[i].pid);
    }
    return all;
}

void work_leave(struct work *work, int slot) { work->tenants[slot].left = true; }

void work_doubt(struct work *work, int slot)
{
    struct watched *watched = &work->tenants[slot];

    for (int i = 0; i < watched->count; i++)
        watched->lines[i].proven = false;
}
