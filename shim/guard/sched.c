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

struct gpu_state {
    int index;
    bool on[LEDGER_TENANTS];
    bool known[LEDGER_TENANTS]; /* what a predecessor left of this tenant was seen to */
    uint64_t on_since[LEDGER_TENANTS];
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

/* NOBODY as the slot: every tenant's channels on this GPU are "other". */
enum whose { OWN, OTHERS };
#define NOBODY (-1)

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
        int count = take_channels(gpu, slot, OWN, true);
        for (int pass = 0; pass < 2; pass++)
            switch_singly(gpu, gpu->channels, count, true);
        note_channels(gpu->channels, count, true);
    }
}

static void switch_tenant(struct gpu_state *gpu, int slot, bool on)
{
    switch_channels(gpu, slot, OWN, on);
    uint64_t now = monotonic_ns();
    ledger_lock();
    ledger_note_on(slot, on, gpu->on[slot] ? now - gpu->on_since[slot] : 0);
    ledger_unlock();
    gpu->on[slot] = on;
    gpu->on_since[slot] = now;
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
    while (!__atomic_load_n(&stopping, __ATOMIC_ACQUIRE) && sleep_until(gpu, when)) {
        switch_channels(gpu, slot, OTHERS, false);
        pause_briefly(CALM_NS); /* nor keep this thread busy */
    }
}

static bool alone_and_unlimited(const struct turn *turns, int count)
{
    return count == 1 && turns[0].ns >= SCHED_PERIOD_NS;
}

/* A tenant's turn: on, wait, off; what it got beside what it should have is settled in later turns. */
static void run_turn(struct gpu_state *gpu, const struct turn *turn)
{
    int64_t length = (int64_t)turn->ns + gpu->owed[turn->slot], limit = (int64_t)SCHED_PERIOD_NS;

    if (length <= 0) { /* it had too much before: this turn pays it back */
        gpu->owed[turn->slot] = length;
        return;
    }
    switch_channels(gpu, turn->slot, OTHERS, false);
    switch_tenant(gpu, turn->slot, true);
    uint64_t began = gpu->on_since[turn->slot];
    sleep_through(gpu, began + (uint64_t)length, turn->slot);
    uint64_t before = monotonic_ns();
    switch_tenant(gpu, turn->slot, false);
    /* measured: it is on when the call returns, and leaves somewhere within the call that takes it off */
    uint64_t ended = (before + gpu->on_since[turn->slot]) / 2;
    int64_t owed = length - (int64_t)(ended - began);
    gpu->owed[turn->slot] = owed > limit ? limit : owed < -limit ? -limit : owed;
}

static void run_period(struct gpu_state *gpu, const struct turn *turns, int count)
{
    uint64_t end = monotonic_ns() + SCHED_PERIOD_NS;

    for (int i = 0; i < count; i++)
        run_turn(gpu, &turns[i]);
    switch_channels(gpu, NOBODY, OTHERS, false);
    sleep_through(gpu, end, NOBODY);
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
            switch_tenant(gpu, turns[0].slot, true);
        sleep_until(gpu, monotonic_ns() + (count ? SCHED_PERIOD_NS * 10 : 3600000000000ull));
        pause_briefly(CALM_NS);
    }
    int count = collect(gpu->index, shares);
    for (int i = 0; i < count; i++)
        switch_tenant(gpu, shares[i].slot, true);
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
