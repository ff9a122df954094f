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
static int take_channels(struct gpu_state *gpu, int slot, bool on)
{
    uint64_t ripe = monotonic_ns() - backend->settle_ns;
    int count = 0;

    ledger_lock();
    for (uint32_t i = 0; i < ledger->object_end && count < MAX_CHANNELS; i++) {
        struct ledger_object *object = &ledger->objects[i];
        if (object->state != OBJECT_HELD || object->tenant != (uint32_t)slot || !object->scheduled_ns ||
            object->scheduled_ns > ripe)
            continue;
        if ((object->off == CHANNEL_ON) == on)
            continue;
        object->off = CHANNEL_UNSURE;
        gpu->channels[count++] = (struct channel){object->root, object->handle};
    }
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

/* A batch failed, for one of it is gone: how far it came is unknown, so each is made sure of by itself. */
static void switch_singly(struct gpu_state *gpu, const struct channel *channels, int count, bool on)
{
    for (int i = 0; i < count; i++) {
        uint32_t status = backend->set_channels(gpu->index, &channels[i], 1, true);
        if (!on)
            status = backend->set_channels(gpu->index, &channels[i], 1, false);
        if (status != NV_OK && notify_trace)
            say("channel 0x%08x of client 0x%08x %s: status 0x%x", channels[i].handle, channels[i].root,
                on ? "on" : "off", status);
    }
}

static void switch_channels(struct gpu_state *gpu, int slot, bool on)
{
    int count = take_channels(gpu, slot, on);

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
        int count = news ? take_channels(gpu, slot, true) : 0;
        for (int pass = 0; pass < 2; pass++)
            switch_singly(gpu, gpu->channels, count, true);
        note_channels(gpu->channels, count, true);
        gpu->known[slot] = tenants[slot].live;
    }
}

static void switch_tenant(struct gpu_state *gpu, int slot, bool on)
{
    switch_channels(gpu, slot, on);
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

/* Sleep until a time or a change. True: something changed. */
static bool sleep_until(uint64_t when, uint64_t *seen)
{
    struct timespec at = {.tv_sec = (time_t)(when / 1000000000ull), .tv_nsec = (long)(when % 1000000000ull)};

    pthread_mutex_lock(&mutex);
    while (changes == *seen && !stopping && pthread_cond_timedwait(&changed, &mutex, &at) != ETIMEDOUT)
        ;
    bool woken = changes != *seen || stopping;
    *seen = changes;
    pthread_mutex_unlock(&mutex);
    return woken;
}

static void pause_briefly(uint64_t ns)
{
    struct timespec t = {.tv_nsec = (long)ns};
    nanosleep(&t, NULL);
}

static bool alone_and_unlimited(const struct turn *turns, int count)
{
    return count == 1 && turns[0].ns >= SCHED_PERIOD_NS;
}

/* A tenant's turn: on, wait, off; what it got beside what it should have is settled in later turns. */
static bool run_turn(struct gpu_state *gpu, const struct turn *turn, uint64_t *seen)
{
    int64_t length = (int64_t)turn->ns + gpu->owed[turn->slot];

    if (length <= 0) { /* it had too much before: this turn pays it back */
        gpu->owed[turn->slot] += (int64_t)turn->ns;
        return false;
    }
    switch_tenant(gpu, turn->slot, true);
    uint64_t began = gpu->on_since[turn->slot];
    bool woken = sleep_until(began + (uint64_t)length, seen);
    uint64_t before = monotonic_ns();
    switch_tenant(gpu, turn->slot, false);
    /* the tenant leaves the GPU somewhere within the call that takes it off: take the middle */
    uint64_t ended = (before + gpu->on_since[turn->slot]) / 2;
    int64_t owed = woken ? 0 : length - (int64_t)(ended - began);
    int64_t limit = (int64_t)SCHED_PERIOD_NS;
    gpu->owed[turn->slot] = owed > limit ? limit : owed < -limit ? -limit : owed;
    return woken;
}

static void all_off_but_turns(struct gpu_state *gpu, const struct share *shares, int count)
{
    for (int i = 0; i < count; i++)
        switch_tenant(gpu, shares[i].slot, false);
}

static void *schedule(void *argument)
{
    struct gpu_state *gpu = argument;
    struct share shares[SCHED_MAX_SHARES];
    struct turn turns[SCHED_MAX_SHARES];
    uint64_t seen = 0;

    while (!__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) {
        put_all_on(gpu);
        int count = collect(gpu->index, shares);
        count = sched_plan(shares, count, SCHED_PERIOD_NS, turns);
        if (count == 0 || alone_and_unlimited(turns, count)) {
            if (count)
                switch_tenant(gpu, turns[0].slot, true);
            sleep_until(monotonic_ns() + (count ? SCHED_PERIOD_NS * 10 : 3600000000000ull), &seen);
            continue;
        }
        uint64_t end = monotonic_ns() + SCHED_PERIOD_NS;
        bool woken = false;
        all_off_but_turns(gpu, shares, count);
        while (!woken && !__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) {
            for (int i = 0; i < count && !woken; i++)
                woken = run_turn(gpu, &turns[i], &seen);
            if (!woken)
                woken = sleep_until(end, &seen);
            end += SCHED_PERIOD_NS;
            if (end < monotonic_ns()) /* a stall: don't race through the periods that were missed */
                end = monotonic_ns() + SCHED_PERIOD_NS;
        }
        pause_briefly(1000000);
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
