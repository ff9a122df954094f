#define _GNU_SOURCE
#include "sched.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "ledger.h"
#include "notify.h"
#include "policy.h"
#include "rm_abi.h"
#include "thread.h"
#include "util.h"
#include "work.h"

#define MAX_CHANNELS 16384
#define CALM_NS 1000000ull        /* at most so often are changes looked at */
#define LOOK_NS 500000ull         /* so often is looked for work while somebody is on the GPU */
#define LOOK_IDLE_NS 1000000ull   /* and while nobody is */
#define LOOK_SOON_NS 150000ull    /* and while the driver is asked */
#define LOOK_COST 15u             /* looking takes at most one part in so many of the thread's time, */
#define LOOK_LATE_NS 5000000ull   /* unless nobody had been looked at for so long */
#define PERIOD_LATE_NS 8000000ull /* so late a period may begin, and be the shorter for it */
#define REST_NS 1000000000ull     /* nothing to wait for: look all the same */
#define ACTIVITY_NS 1000000000ull /* so often is noted who is at work, for people to see */
#define ACTIVITY_SOON_NS 20000000ull
#define NEVER UINT64_MAX

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;
static uint64_t changes; /* under mutex */
static bool stopping;
static pthread_t threads[MAX_GPUS];

/* NOBODY as the slot: every tenant's channels on this GPU are "other". */
#define NOBODY (-1)
enum whose { OWN, OTHERS };
_Static_assert(POLICY_SHARES_MAX >= LEDGER_TENANTS, "a share for each");

/* How one tenant stands on a GPU. */
struct standing {
    bool known;  /* what a predecessor left of it was seen to */
    bool asleep; /* it has no work: it is off, and gets no turn until it has */
    struct allowance allowance;
    struct patience patience;
};

struct gpu_state {
    int index;
    int current;             /* who is on */
    uint64_t since, counted; /* since when; until when its time is on its page */
    uint64_t seen;           /* of `changes` */
    uint64_t look_again;     /* at channels that are too new to be switched yet */
    uint64_t next_look;      /* for work */
    uint64_t next_activity;
    uint64_t period_end; /* 0: none goes on */
    uint64_t visited_ns; /* what visits took of this period */
    uint64_t promised;   /* millipercent, to all who have channels, asleep or not */
    int slots_end;       /* no tenant is beyond */
    int served;          /* the one who visited last */
    struct work *work;
    struct standing standings[LEDGER_TENANTS];
    struct channel channels[MAX_CHANNELS];
};

/*
 * The driver counts: a channel taken off twice has to be put on twice, one put on too often takes no harm. So
 * each is switched only from a known state, and one of unknown state is put on, twice, before anything else.
 */
static int take_channels_of(struct gpu_state *gpu, int slot, bool on, int count)
{
    uint64_t ripe = monotonic_ns() - backend->settle_ns;

    for (struct ledger_object *channel = ledger_first_channel(slot); channel && count < MAX_CHANNELS;
         channel = ledger_next_listed(channel)) {
        if (channel->state != OBJECT_HELD || !channel->scheduled_ns || channel->scheduled_ns > ripe)
            continue;
        if ((channel->off == CHANNEL_ON) == on)
            continue;
        channel->off = CHANNEL_UNSURE;
        gpu->channels[count++] = (struct channel){channel->root, channel->handle};
    }
    return count;
}

static int take_channels(struct gpu_state *gpu, int slot, enum whose whose, bool on)
{
    int count = 0;

    ledger_lock();
    for (int other = 0; other < LEDGER_TENANTS; other++)
        if (tenants[other].live && tenants[other].gpu == gpu->index && (other == slot) == (whose == OWN))
            count = take_channels_of(gpu, other, on, count);
    ledger_unlock();
    return count;
}

static void note_channels(const struct channel *channels, int count, bool on)
{
    ledger_lock();
    for (int i = 0; i < count; i++) {
        struct ledger_object *object = ledger_find(channels[i].root, channels[i].handle);
        if (object)
            object->off = on ? CHANNEL_ON : CHANNEL_OFF;
    }
    ledger_unlock();
}

static void forget_channel(const struct channel *channel)
{
    ledger_lock();
    struct ledger_object *object = ledger_find(channel->root, channel->handle);
    if (object)
        object->scheduled_ns = 0;
    ledger_unlock();
}

/* A batch failed, for one of it is gone: how far it came is unknown, so each is made sure of by itself. */
static void switch_singly(struct gpu_state *gpu, const struct channel *channels, int count, bool on)
{
    for (int i = 0; i < count; i++) {
        uint32_t status = backend->set_channels(gpu->index, &channels[i], 1, true);
        if (!on && status == NV_OK)
            status = backend->set_channels(gpu->index, &channels[i], 1, false);
        if (status != NV_OK) /* it is gone, or never was: do not fail on it again */
            forget_channel(&channels[i]);
        if (status != NV_OK && notify_trace)
            say("channel 0x%08x of client 0x%08x %s: status 0x%x", channels[i].handle, channels[i].root,
                on ? "on" : "off", status);
    }
}

static void switch_channels(struct gpu_state *gpu, int slot, enum whose whose, bool on)
{
    int count = take_channels(gpu, slot, whose, on);

    for (int i = 0; i < count; i += NV2080_FIFO_DISABLE_CHANNELS_MAX) {
        int batch = count - i < NV2080_FIFO_DISABLE_CHANNELS_MAX ? count - i : NV2080_FIFO_DISABLE_CHANNELS_MAX;
        if (backend->set_channels(gpu->index, gpu->channels + i, batch, on) != NV_OK)
            switch_singly(gpu, gpu->channels + i, batch, on);
        note_channels(gpu->channels + i, batch, on);
    }
}

/* What a killed predecessor left: every channel that is or may be off goes on. */
static void put_all_on(struct gpu_state *gpu)
{
    for (int slot = 0; slot < LEDGER_TENANTS; slot++) {
        struct standing *standing = &gpu->standings[slot];
        bool news = tenants[slot].live && tenants[slot].gpu == gpu->index && !standing->known;
        standing->known = tenants[slot].live;
        if (!news)
            continue;
        *standing = (struct standing){.known = true};
        int count = take_channels(gpu, slot, OWN, true);
        for (int pass = 0; pass < 2; pass++)
            switch_singly(gpu, gpu->channels, count, true);
        note_channels(gpu->channels, count, true);
    }
}

/* Its time on the GPU until now goes on the tenant's page. */
static void count_time(struct gpu_state *gpu, uint64_t now, bool on)
{
    if (gpu->current != NOBODY) {
        ledger_lock();
        ledger_note_on(gpu->current, on, now - gpu->counted);
        ledger_unlock();
    }
    gpu->counted = now;
}

/* What who is on has used until now is taken from what it was given. */
static void settle(struct gpu_state *gpu, uint64_t now)
{
    if (gpu->current != NOBODY)
        policy_take(&gpu->standings[gpu->current].allowance, now - gpu->since);
    gpu->since = now;
}

/*
 * From who is on to the next. The next goes on first, so that it is there when the other leaves: switching takes the
 * driver's time, and hardly any of the GPU's. Measured: one who goes on is on when the call returns, one who goes off
 * leaves in the middle of the call.
 */
static void hand_over(struct gpu_state *gpu, int to)
{
    if (to != NOBODY)
        switch_channels(gpu, to, OWN, true);
    uint64_t before = monotonic_ns();
    switch_channels(gpu, to, OTHERS, false);
    uint64_t boundary = gpu->current == NOBODY ? before : before + (monotonic_ns() - before) / 2;
    settle(gpu, boundary);
    count_time(gpu, boundary, false);
    if (gpu->current != NOBODY) {
        policy_leave(&gpu->standings[gpu->current].patience, boundary);
        work_leave(gpu->work, gpu->current);
    }
    gpu->current = to;
    if (to != NOBODY)
        policy_come_back(&gpu->standings[to].patience, boundary);
    count_time(gpu, boundary, true);
}

/* The shares of those who have channels here and are awake; `sleepers`: how many are not. */
static int collect(struct gpu_state *gpu, struct share *shares, int *sleepers)
{
    int count = 0;

    *sleepers = gpu->slots_end = 0;
    gpu->promised = 0;
    ledger_lock();
    for (int slot = 0; slot < LEDGER_TENANTS; slot++) {
        if (!tenants[slot].live || tenants[slot].gpu != gpu->index || !tenants[slot].channels) {
            gpu->standings[slot].asleep = false;
            continue;
        }
        gpu->slots_end = slot + 1;
        gpu->promised += tenants[slot].core_millipercent;
        if (gpu->standings[slot].asleep)
            ++*sleepers;
        else
            shares[count++] = (struct share){slot, tenants[slot].core_millipercent, tenants[slot].policy};
    }
    ledger_unlock();
    return count;
}

/* --- waiting --- */

static bool is_stopping(void) { return __atomic_load_n(&stopping, __ATOMIC_ACQUIRE); }

/* Sleep until a time or a change. True: something changed. */
static bool sleep_until(struct gpu_state *gpu, uint64_t when)
{
    struct timespec at = {.tv_sec = (time_t)(when / 1000000000ull), .tv_nsec = (long)(when % 1000000000ull)};

    pthread_mutex_lock(&mutex);
    while (changes == gpu->seen && !stopping && pthread_cond_timedwait(&changed, &mutex, &at) != ETIMEDOUT)
        ;
    bool woken = changes != gpu->seen || stopping;
    gpu->seen = changes;
    pthread_mutex_unlock(&mutex);
    return woken;
}

static void pause_briefly(uint64_t ns)
{
    struct timespec t = {.tv_nsec = (long)ns};
    nanosleep(&t, NULL);
}

/*
 * New channels of those who are not on go off, and are watched. What is too new to be switched is looked at again.
 * A tenant that makes channels all the time must not keep this thread busy.
 */
static void take_note(struct gpu_state *gpu, bool woken)
{
    switch_channels(gpu, gpu->current, OTHERS, false);
    work_refresh(gpu->work);
    gpu->look_again = woken ? monotonic_ns() + backend->settle_ns + CALM_NS : NEVER;
    if (woken)
        pause_briefly(CALM_NS);
}

/* One that sleeps and has work now, the last one's after him first; NOBODY: none. */
static int find_waker(const struct gpu_state *gpu)
{
    for (int i = 1; i <= gpu->slots_end; i++) {
        int slot = (gpu->served + i) % gpu->slots_end;
        if (gpu->standings[slot].asleep && work_is_pending(gpu->work, slot))
            return slot;
    }
    return NOBODY;
}

/* Has who is on nothing to do any more? */
static enum work_state look_at_current(struct gpu_state *gpu, uint64_t now)
{
    struct patience *patience = &gpu->standings[gpu->current].patience;

    if (!work_is_seen(gpu->work, gpu->current) || work_moved(gpu->work, gpu->current)) {
        policy_stir(patience, now);
        return WORK_BUSY;
    }
    if (!policy_is_quiet(patience, now))
        return WORK_BUSY;
    enum work_state state = work_ask(gpu->work, gpu->current);
    if (state == WORK_BUSY)
        policy_was_busy(patience, now);
    return state;
}

/* Why the waiting ended; and, as a set, what may end it before its time. */
enum event { EVENT_TIME = 0, EVENT_IDLE = 1, EVENT_WAKER = 2, EVENT_CHANGE = 4 };

static enum event look(struct gpu_state *gpu, unsigned ends)
{
    uint64_t began = monotonic_ns(), pause = gpu->current == NOBODY ? LOOK_IDLE_NS : LOOK_NS;
    enum event event = EVENT_TIME;

    work_go_on(gpu->work);
    if (ends & EVENT_WAKER && find_waker(gpu) != NOBODY) {
        event = EVENT_WAKER;
    } else if (ends & EVENT_IDLE) {
        enum work_state state = look_at_current(gpu, began);
        event = state == WORK_IDLE ? EVENT_IDLE : EVENT_TIME;
        pause = state == WORK_ASKED ? LOOK_SOON_NS : pause;
    }
    uint64_t ended = monotonic_ns(), dear = LOOK_COST * (ended - began);
    if (dear > pause)
        pause = dear < LOOK_LATE_NS ? dear : LOOK_LATE_NS;
    gpu->next_look = ended + pause;
    return event;
}

static uint64_t earliest(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* When something is to be looked at, one look comes before anything else: changes and short turns must not put it off.
 */
static enum event hold(struct gpu_state *gpu, uint64_t until, unsigned ends)
{
    bool looks = ends & (EVENT_WAKER | EVENT_IDLE);

    while (!is_stopping()) {
        uint64_t now = monotonic_ns();
        if (now >= gpu->next_activity) {
            gpu->next_activity = now + (work_note_activity(gpu->work) ? ACTIVITY_NS : ACTIVITY_SOON_NS);
        }
        enum event event = looks && now >= gpu->next_look ? look(gpu, ends) : EVENT_TIME;
        if (event != EVENT_TIME)
            return event;
        if (now >= until)
            return EVENT_TIME;
        uint64_t next = earliest(gpu->next_activity, gpu->look_again);
        if (looks)
            next = earliest(next, gpu->next_look);
        bool woken = sleep_until(gpu, earliest(until, next));
        if (woken || monotonic_ns() >= gpu->look_again)
            take_note(gpu, woken);
        if (woken && ends & EVENT_CHANGE)
            return EVENT_CHANGE;
    }
    return EVENT_TIME;
}

/* --- turns and visits --- */

static uint64_t end_of_turn(const struct gpu_state *gpu)
{
    int64_t left = gpu->standings[gpu->current].allowance.left;
    return gpu->since + (left > 0 ? (uint64_t)left : 0);
}

static uint64_t share_ns(const struct gpu_state *gpu, int slot)
{
    ledger_lock();
    uint32_t millipercent = tenants[slot].core_millipercent;
    ledger_unlock();
    return policy_share_ns(millipercent, gpu->promised, POLICY_PERIOD_NS);
}

/*
 * One who slept has work: it interrupts whoever is on, for a short time that counts as its own, as does the time that
 * switching takes. If it has had its share of this period it waits for its turn in the next.
 */
static void visit(struct gpu_state *gpu, int slot)
{
    struct standing *standing = &gpu->standings[slot];
    uint64_t began = monotonic_ns(), length = policy_give_visit(&standing->allowance, began, share_ns(gpu, slot));

    gpu->served = slot;
    standing->asleep = false;
    policy_forget(&standing->patience);
    if (!length) {
        work_doubt(gpu->work, slot);
        return;
    }
    hand_over(gpu, slot);
    policy_take(&standing->allowance, monotonic_ns() - began);
    standing->asleep = hold(gpu, gpu->since + length, EVENT_IDLE) == EVENT_IDLE;
    gpu->visited_ns += monotonic_ns() - began;
}

static void serve_wakers(struct gpu_state *gpu)
{
    int slot;

    while (!is_stopping() && (slot = find_waker(gpu)) != NOBODY)
        visit(gpu, slot);
}

/* A tenant's turn. It ends when the next begins; what it was longer or shorter than planned is settled later. */
static void run_turn(struct gpu_state *gpu, int slot)
{
    struct standing *standing = &gpu->standings[slot];
    enum event event = EVENT_WAKER;

    while (event == EVENT_WAKER && standing->allowance.left > 0) {
        hand_over(gpu, slot);
        event = hold(gpu, end_of_turn(gpu), EVENT_IDLE | EVENT_WAKER);
        if (event == EVENT_WAKER)
            serve_wakers(gpu);
    }
    standing->asleep |= event == EVENT_IDLE;
}

/* Nobody's time. */
static void run_gap(struct gpu_state *gpu, uint64_t until)
{
    enum event event = EVENT_WAKER;

    while (event == EVENT_WAKER && monotonic_ns() < until) {
        hand_over(gpu, NOBODY);
        event = hold(gpu, until, EVENT_WAKER);
        if (event == EVENT_WAKER)
            serve_wakers(gpu);
    }
}

/* What is left of a period because some fell asleep: it goes to those who take what is idle, else it is nobody's. */
static void run_rest(struct gpu_state *gpu, const struct share *shares, int count, uint64_t end)
{
    uint64_t now = monotonic_ns();
    int takers[POLICY_SHARES_MAX], taking = 0;

    if (now + CALM_NS >= end) /* the last one's turn ends with the next period's first */
        return;
    for (int i = 0; i < count; i++)
        if (shares[i].policy == VGPU_POLICY_BURST && !gpu->standings[shares[i].slot].asleep)
            takers[taking++] = shares[i].slot;
    for (int i = 0; i < taking; i++) {
        settle(gpu, monotonic_ns()); /* it may be who is on: first what it used, then more */
        policy_give_more(&gpu->standings[takers[i]].allowance, (end - now) / (uint64_t)taking);
        run_turn(gpu, takers[i]);
    }
    if (monotonic_ns() + CALM_NS < end)
        run_gap(gpu, end);
}

/*
 * Periods follow each other without a pause. One that a visit made longer is made up for by the next, or who visits at
 * the end of each would make all of them longer, and the others' shares smaller.
 */
static uint64_t next_period(struct gpu_state *gpu)
{
    uint64_t now = monotonic_ns();
    int64_t late = (int64_t)(now - gpu->period_end); /* or a little early */
    bool follows = gpu->period_end && late < (int64_t)PERIOD_LATE_NS;

    gpu->period_end = (follows ? gpu->period_end : now) + POLICY_PERIOD_NS;
    return gpu->period_end;
}

static void run_period(struct gpu_state *gpu, const struct share *shares, const struct turn *turns, int count)
{
    uint64_t end = next_period(gpu);

    gpu->visited_ns = 0;
    for (int i = 0; i < count && !is_stopping(); i++) {
        settle(gpu, monotonic_ns());
        /* as of the period's beginning: when in it a turn comes differs */
        policy_give_turn(&gpu->standings[turns[i].slot].allowance, end - POLICY_PERIOD_NS, turns[i].ns);
        run_turn(gpu, turns[i].slot);
    }
    run_rest(gpu, shares, count, end);
}

/* Nobody else has work, and it may have all: on, until something changes or one of the others wakes. */
static void run_alone(struct gpu_state *gpu, int slot, int sleepers)
{
    gpu->visited_ns = gpu->period_end = 0;
    if (gpu->current != slot)
        hand_over(gpu, slot);
    switch_channels(gpu, slot, OWN, true);
    enum event event = hold(gpu, monotonic_ns() + REST_NS, EVENT_CHANGE | (sleepers ? EVENT_WAKER : 0));
    count_time(gpu, monotonic_ns(), true);
    gpu->since = gpu->counted; /* so long it owes nobody anything, and has its whole share to come */
    gpu->standings[slot].allowance = (struct allowance){0};
    work_doubt(gpu->work, slot);
    if (event == EVENT_WAKER)
        serve_wakers(gpu);
}

/* Nobody has work. */
static void run_none(struct gpu_state *gpu, int sleepers)
{
    gpu->visited_ns = gpu->period_end = 0;
    hand_over(gpu, NOBODY);
    if (hold(gpu, monotonic_ns() + REST_NS, EVENT_CHANGE | (sleepers ? EVENT_WAKER : 0)) == EVENT_WAKER)
        serve_wakers(gpu);
}

static void *schedule(void *argument)
{
    struct gpu_state *gpu = argument;
    struct share shares[POLICY_SHARES_MAX];
    struct turn turns[POLICY_SHARES_MAX];
    int count, sleepers;

    while (!is_stopping()) {
        put_all_on(gpu);
        count = collect(gpu, shares, &sleepers);
        policy_plan(shares, count, POLICY_PERIOD_NS, gpu->visited_ns, turns);
        if (count == 1 && turns[0].ns >= POLICY_PERIOD_NS)
            run_alone(gpu, turns[0].slot, sleepers);
        else if (count)
            run_period(gpu, shares, turns, count);
        else
            run_none(gpu, sleepers);
    }
    for (int slot = 0; slot < LEDGER_TENANTS; slot++)
        if (gpu->standings[slot].known)
            switch_channels(gpu, slot, OWN, true);
    work_close(gpu->work);
    free(gpu);
    return NULL;
}

void sched_start(void)
{
    init_condition(&changed);
    for (int i = 0; i < gpu_count; i++) {
        struct gpu_state *gpu = calloc(1, sizeof *gpu);
        if (!gpu)
            die("out of memory");
        gpu->index = i;
        gpu->current = NOBODY;
        gpu->look_again = NEVER;
        gpu->work = work_open(i);
        errno = pthread_create(&threads[i], NULL, schedule, gpu);
        if (errno)
            die_with_error("pthread_create");
    }
}

void sched_wake(void)
{
    pthread_mutex_lock(&mutex);
    changes++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

void sched_stop(void)
{
    pthread_mutex_lock(&mutex);
    __atomic_store_n(&stopping, true, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
    for (int i = 0; i < gpu_count; i++)
        pthread_join(threads[i], NULL);
}
