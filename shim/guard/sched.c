#define _GNU_SOURCE
#include "sched.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "ledger.h"
#include "notify.h"
#include "rm_abi.h"
#include "util.h"

#define FULL 100000u /* millipercent of one GPU */
#define MAX_CHANNELS 16384
#define CALM_NS 1000000ull /* at most so often are changes looked at */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;
static uint64_t changes; /* under mutex */
static bool stopping;
static pthread_t threads[MAX_GPUS];

/* NOBODY as the slot: every tenant's channels on this GPU are "other". */
#define NOBODY (-1)
#define UNLIMITED UINT64_MAX
enum whose { OWN, OTHERS };

struct gpu_state {
    int index;
    int current;                  /* whose turn it is */
    uint64_t since, length;       /* of that turn */
    uint64_t counted;             /* until when its time is on the tenant's page */
    bool known[LEDGER_TENANTS];   /* what a predecessor left of this tenant was seen to */
    int64_t owed[LEDGER_TENANTS]; /* ns that a tenant got too little (or, negative, too much) so far */
    uint64_t seen;                /* of `changes` */
    struct channel channels[MAX_CHANNELS];
};

int sched_plan(const struct share *shares, int count, uint64_t period_ns, struct turn *turns)
{
    uint64_t asked = 0, left;
    int burst = 0;

    for (int i = 0; i < count; i++) {
        asked += shares[i].millipercent;
        burst += shares[i].policy == VGPU_POLICY_BURST;
    }
    uint64_t whole = asked > FULL ? asked : FULL; /* over 100 percent in all: in proportion */
    left = asked < FULL ? (FULL - asked) * period_ns / FULL : 0;
    for (int i = 0; i < count; i++) {
        turns[i] = (struct turn){shares[i].slot, period_ns * shares[i].millipercent / whole};
        if (shares[i].policy == VGPU_POLICY_BURST)
            turns[i].ns += left / (uint64_t)burst;
    }
    return count;
}

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
        bool news = tenants[slot].live && tenants[slot].gpu == gpu->index && !gpu->known[slot];
        gpu->known[slot] = tenants[slot].live;
        if (!news)
            continue;
        gpu->owed[slot] = 0;
        int count = take_channels(gpu, slot, OWN, true);
        for (int pass = 0; pass < 2; pass++)
            switch_singly(gpu, gpu->channels, count, true);
        note_channels(gpu->channels, count, true);
    }
}

/* Its time on the GPU until now goes on the tenant's page. */
static void count_time(struct gpu_state *gpu, uint64_t now, bool on)
{
    if (gpu->current == NOBODY)
        return;
    ledger_lock();
    ledger_note_on(gpu->current, on, now - gpu->counted);
    ledger_unlock();
    gpu->counted = now;
}

/* A turn has ended: what it was longer or shorter than planned is settled in later ones. */
static void settle_turn(struct gpu_state *gpu, uint64_t ended)
{
    int64_t limit = (int64_t)SCHED_PERIOD_NS, owed = (int64_t)(gpu->length - (ended - gpu->since));

    if (gpu->current != NOBODY && gpu->length != UNLIMITED)
        gpu->owed[gpu->current] = owed > limit ? limit : owed < -limit ? -limit : owed;
    count_time(gpu, ended, false);
}

/*
 * From whose turn it is to the next. The next goes on first, so that it is there when the other leaves: switching
 * takes the driver's time, and hardly any of the GPU's. Measured: one who goes on is on when the call returns, one who
 * goes off leaves in the middle of the call.
 */
static void hand_over(struct gpu_state *gpu, int to, uint64_t length)
{
    if (to != NOBODY)
        switch_channels(gpu, to, OWN, true);
    uint64_t before = monotonic_ns();
    switch_channels(gpu, to, OTHERS, false);
    uint64_t boundary = gpu->current == NOBODY ? before : before + (monotonic_ns() - before) / 2;
    settle_turn(gpu, boundary);
    gpu->current = to;
    gpu->since = gpu->counted = boundary;
    gpu->length = length;
    count_time(gpu, boundary, true);
}

static int collect(int index, struct share *shares)
{
    int count = 0;

    ledger_lock();
    for (int slot = 0; slot < LEDGER_TENANTS && count < SCHED_MAX_SHARES; slot++)
        if (tenants[slot].live && tenants[slot].gpu == index && tenants[slot].channels)
            shares[count++] = (struct share){slot, tenants[slot].core_millipercent, tenants[slot].policy};
    ledger_unlock();
    return count;
}

static void pause_briefly(uint64_t ns)
{
    struct timespec t = {.tv_nsec = (long)ns};
    nanosleep(&t, NULL);
}

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

/*
 * Sleep until a time, whatever changes: a tenant that makes channels all the time must not cut a turn short. New
 * channels of those whose turn it is not go off meanwhile; new quotas count from the next period on.
 */
static void sleep_through(struct gpu_state *gpu, uint64_t when, int slot)
{
    /* what was too fresh to be switched is looked at again when it no longer is */
    uint64_t again = monotonic_ns() + backend->settle_ns + CALM_NS;

    while (!__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) {
        uint64_t until = again < when ? again : when;
        bool woken = sleep_until(gpu, until);
        if (!woken && until == when)
            return;
        switch_channels(gpu, slot, OTHERS, false);
        again = woken ? monotonic_ns() + backend->settle_ns + CALM_NS : UNLIMITED;
        pause_briefly(CALM_NS); /* nor keep this thread busy */
    }
}

static bool alone_and_unlimited(const struct turn *turns, int count)
{
    return count == 1 && turns[0].ns >= SCHED_PERIOD_NS;
}

/* A tenant's turn. It ends when the next begins. */
static void run_turn(struct gpu_state *gpu, const struct turn *turn)
{
    int64_t length = (int64_t)turn->ns + gpu->owed[turn->slot];

    if (length <= 0) { /* it had too much before: this turn pays it back */
        gpu->owed[turn->slot] = length;
        return;
    }
    hand_over(gpu, turn->slot, (uint64_t)length);
    sleep_through(gpu, gpu->since + gpu->length, turn->slot);
}

static void run_period(struct gpu_state *gpu, const struct turn *turns, int count)
{
    uint64_t end = monotonic_ns() + SCHED_PERIOD_NS, filled = 0;

    for (int i = 0; i < count; i++) {
        run_turn(gpu, &turns[i]);
        filled += turns[i].ns;
    }
    if (filled + CALM_NS >= SCHED_PERIOD_NS) /* no gap: the last one's turn ends with the next period's first */
        return;
    hand_over(gpu, NOBODY, 0);
    sleep_through(gpu, end, NOBODY);
}

/* Nobody else, and no limit: on, for as long as nothing changes. */
static void run_alone(struct gpu_state *gpu, int slot)
{
    if (gpu->current != slot || gpu->length != UNLIMITED)
        hand_over(gpu, slot, UNLIMITED);
    switch_channels(gpu, slot, OWN, true);
    count_time(gpu, monotonic_ns(), true);
}

static void *schedule(void *argument)
{
    struct gpu_state *gpu = argument;
    struct share shares[SCHED_MAX_SHARES];
    struct turn turns[SCHED_MAX_SHARES];

    while (!__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) {
        put_all_on(gpu);
        int count = sched_plan(shares, collect(gpu->index, shares), SCHED_PERIOD_NS, turns);
        if (count && !alone_and_unlimited(turns, count)) {
            run_period(gpu, turns, count);
            continue;
        }
        if (count)
            run_alone(gpu, turns[0].slot);
        else
            hand_over(gpu, NOBODY, 0);
        sleep_until(gpu, monotonic_ns() + (count ? SCHED_PERIOD_NS * 10 : 3600000000000ull));
        pause_briefly(CALM_NS);
    }
    for (int count = collect(gpu->index, shares); count-- > 0;)
        switch_channels(gpu, shares[count].slot, OWN, true);
    free(gpu);
    return NULL;
}

void sched_start(void)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &attributes);
    for (int i = 0; i < gpu_count; i++) {
        struct gpu_state *gpu = calloc(1, sizeof *gpu);
        if (!gpu)
            die("out of memory");
        gpu->index = i;
        gpu->current = NOBODY;
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
