#define _GNU_SOURCE
#include "pace.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "budget.h"
#include "hook.h"

#define LANES 256
#define TICK_NS 500000ull
#define CALM_TICK_NS 2000000ull /* while nobody waits and much is left: each tick takes the driver from the program */
#define MUCH_NS ((int64_t)CALM_TICK_NS * 2)
#define REST_TICKS 40 /* without work, then the thread sleeps until there is some */
#define MANY 8        /* launches between two looks: there will be another in a moment */
#define FIRST_WINDOW 2
#define UNCERTAIN_MAX 16
#define WINDOW_MAX 4096     /* launches */
#define SHORT_NS 2000000ull /* work in flight is kept between these: less would leave the GPU waiting, more would */
#define LONG_NS 5000000ull  /* run on for long after the budget is used up */
#define PATIENCE_NS 5000000000ull /* then a launch goes on: what is on the GPU may be waiting for it */

#define NOTE_NS 100000000ull
#define RETRY_MS 20
#define TELL_AFTER_MS 3000

enum { CUDA_SUCCESS = 0, CUDA_ERROR_NOT_READY = 600, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906 };
enum { STREAM_LEGACY = 1, STREAM_PER_THREAD = 2, CAPTURE_MODE_RELAXED = 2 };

/* A stream that work was put on. */
struct lane {
    void *stream, *context;
    const void *thread; /* of a stream of the thread's own */
    int device;
    void *start, *mark; /* events: before its work began, and after `marked` launches */
    uint64_t serial, entered, submitted, confirmed, marked, marked_ns;
    struct span span;
    unsigned window;
    bool begun;   /* the start was reached: before, it waits for something else than the GPU */
    bool pending; /* the mark is not reached yet */
    bool left;    /* and the next launch makes the new one */
    bool orphan;  /* the stream is gone, its work is not */
};

static struct {
    int (*create)(void **, unsigned), (*record)(void *, void *), (*query)(void *), (*destroy)(void *);
    int (*elapsed)(float *, void *, void *), (*capturing)(void *, int *), (*current)(void **), (*device)(int *);
    int (*push)(void *), (*pop)(void **), (*capture_mode)(int *);
    int (*green)(void *, void **); /* of a stream; newer drivers only */
} driver;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_cond_t wanted = PTHREAD_COND_INITIALIZER; /* by the monotonic clock, once the thread is there */
static struct lane lanes[LANES];
static uint64_t generation; /* of lanes: what a thread remembers is as old as this */
static bool running, stopping, resting, open_gate;
static unsigned waiting; /* launches */
static bool lacking;     /* the driver has no events: asked once */
static struct vgpu_account *account;

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void add_ns(struct timespec *time, uint64_t ns)
{
    uint64_t sum = (uint64_t)time->tv_nsec + ns;

    time->tv_sec += (time_t)(sum / 1000000000ull);
    time->tv_nsec = (long)(sum % 1000000000ull);
}

static void *find(const char *symbol) { return real_symbol("libcuda.so.1", symbol); }

static bool find_driver(void)
{
#define FIND(member, symbol)                          \
    do {                                              \
        void *found = find(symbol);                   \
        memcpy(&driver.member, &found, sizeof found); \
    } while (0)
    FIND(create, "cuEventCreate");
    FIND(record, "cuEventRecord");
    FIND(query, "cuEventQuery");
    FIND(destroy, "cuEventDestroy_v2");
    FIND(elapsed, "cuEventElapsedTime");
    FIND(capturing, "cuStreamIsCapturing");
    FIND(current, "cuCtxGetCurrent");
    FIND(device, "cuCtxGetDevice");
    FIND(push, "cuCtxPushCurrent_v2");
    FIND(pop, "cuCtxPopCurrent_v2");
    FIND(capture_mode, "cuThreadExchangeStreamCaptureMode");
    FIND(green, "cuStreamGetGreenCtx");
#undef FIND
    return driver.create && driver.record && driver.query && driver.destroy && driver.elapsed && driver.capturing &&
           driver.current && driver.device && driver.push && driver.pop;
}

/* --- lanes; under the mutex --- */

static bool is_busy(const struct lane *lane)
{
    return lane->stream &&
           __atomic_load_n(&lane->submitted, __ATOMIC_SEQ_CST) != __atomic_load_n(&lane->confirmed, __ATOMIC_SEQ_CST);
}

/* It has nothing on the GPU, and no thread is about to put something there. */
static bool is_unused(const struct lane *lane)
{
    return !is_busy(lane) &&
           __atomic_load_n(&lane->entered, __ATOMIC_SEQ_CST) == __atomic_load_n(&lane->submitted, __ATOMIC_SEQ_CST);
}

/* What is captured is not on the GPU. The driver does not say of a context's default stream while another is captured.
 */
enum capture { CAPTURE_NO, CAPTURE_YES, CAPTURE_UNKNOWN, CAPTURE_BROKEN };

static enum capture capture_of(const struct lane *lane)
{
    int status = 0, rc = driver.capturing(lane->stream, &status);

    if (rc == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)
        return CAPTURE_UNKNOWN;
    return rc != CUDA_SUCCESS ? CAPTURE_BROKEN : status ? CAPTURE_YES : CAPTURE_NO;
}

static void drop(struct lane *lane, bool events_too)
{
    if (events_too && lane->start)
        driver.destroy(lane->start);
    if (events_too && lane->mark)
        driver.destroy(lane->mark);
    *lane = (struct lane){0};
    __atomic_add_fetch(&generation, 1, __ATOMIC_SEQ_CST);
}

static bool set_mark(struct lane *lane, uint64_t now)
{
    uint64_t marked = __atomic_load_n(&lane->submitted, __ATOMIC_SEQ_CST);

    if (driver.record(lane->mark, lane->stream) != CUDA_SUCCESS)
        return false;
    lane->marked = marked;
    lane->marked_ns = now;
    __atomic_store_n(&lane->left, false, __ATOMIC_SEQ_CST);
    __atomic_store_n(&lane->pending, true, __ATOMIC_SEQ_CST);
    return true;
}

static void fit_window(struct lane *lane, uint64_t took)
{
    if (took < SHORT_NS && lane->window < WINDOW_MAX)
        __atomic_store_n(&lane->window, lane->window * 2, __ATOMIC_RELAXED);
    else if (took > LONG_NS && lane->window > 1)
        __atomic_store_n(&lane->window, lane->window / 2, __ATOMIC_RELAXED);
}

/* From this thread: what was handed in since the last mark. False: the lane is of no use any more. */
static bool mark_here(struct lane *lane, uint64_t now)
{
    switch (capture_of(lane)) {
    case CAPTURE_NO: return set_mark(lane, now);
    case CAPTURE_YES:
        __atomic_store_n(&lane->confirmed, __atomic_load_n(&lane->submitted, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
        break;
    case CAPTURE_UNKNOWN: break; /* at the next tick, then */
    case CAPTURE_BROKEN: return false;
    }
    return true;
}

static void mark_anew(struct lane *lane, uint64_t now)
{
    if (lane->thread) /* only that thread can; it marks each of its launches */
        return;
    if (lane->orphan) { /* nobody can any more */
        drop(lane, true);
        return;
    }
    driver.push(lane->context); /* whose default stream it may be */
    bool good = mark_here(lane, now);
    driver.pop(&(void *){NULL});
    if (!good)
        drop(lane, false);
}

/* What the lane had on the GPU is done: the events tell when that was. */
static void finish(struct lane *lane, uint64_t now)
{
    float milliseconds = 0;

    if (driver.elapsed(&milliseconds, lane->start, lane->mark) == CUDA_SUCCESS)
        budget_settle(account, &lane->span, lane->span.started_ns + (uint64_t)((double)milliseconds * 1e6), now);
    else
        budget_settle(account, &lane->span, now, now);
    if (lane->orphan)
        drop(lane, true);
}

/* Nobody waits, and much may be used before anybody has to. */
static bool is_calm(void) { return !waiting && budget_left(account) > MUCH_NS; }

/* A mark from the measuring thread meets the program's launches at the driver's lock. One that launches all the time
 * makes it cheaper; a tenant at its limit is measured exactly, at once.
 */
static bool may_be_left(const struct lane *lane)
{
    return !lane->thread && !lane->orphan && is_calm() &&
           __atomic_load_n(&lane->submitted, __ATOMIC_SEQ_CST) - lane->marked >= MANY;
}

/* The mark was reached: what came after it is marked anew, or the lane has nothing on the GPU. */
static void reached(struct lane *lane, uint64_t now)
{
    fit_window(lane, now - lane->marked_ns);
    bool left = may_be_left(lane);
    __atomic_store_n(&lane->left, left, __ATOMIC_SEQ_CST); /* before a launch can see that a mark is wanted */
    __atomic_store_n(&lane->pending, false, __ATOMIC_SEQ_CST);
    __atomic_store_n(&lane->confirmed, lane->marked, __ATOMIC_SEQ_CST);
    if (!is_busy(lane)) {
        finish(lane, now);
        return;
    }
    budget_charge(account, &lane->span, now);
    if (!left)
        mark_anew(lane, now);
}

/* A stream may wait before its first work: for the host, a copy, another stream. That is no time on the GPU. */
static bool has_begun(struct lane *lane, uint64_t now)
{
    if (!lane->begun && driver.query(lane->start) == CUDA_ERROR_NOT_READY)
        lane->span.started_ns = now;
    else
        lane->begun = true;
    return lane->begun;
}

static bool look_at(struct lane *lane, uint64_t now)
{
    if (!is_busy(lane))
        return false;
    if (!lane->pending) { /* it could not be marked when it was handed in, or no launch came */
        mark_anew(lane, now);
        return true;
    }
    int rc = driver.query(lane->mark);
    if (rc == CUDA_SUCCESS)
        reached(lane, now);
    else if (rc != CUDA_ERROR_NOT_READY)
        drop(lane, false); /* its context is gone, or broken */
    else if (has_begun(lane, now))
        budget_charge(account, &lane->span, now);
    return true;
}

/* --- the thread that measures --- */

static bool tick(void)
{
    uint64_t now = now_ns();
    bool busy = false;

    pthread_mutex_lock(&mutex);
    for (int i = 0; i < LANES && !stopping; i++)
        busy |= lanes[i].stream && look_at(&lanes[i], now);
    budget_refill(account, slice_core_now(), now);
    if (busy)
        account_note_busy(now);
    __atomic_store_n(&open_gate, budget_left(account) > 0, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
    return busy;
}

/* Returns when there may be work. Nobody measures meanwhile, so the gate is left open: the first launch wakes. */
static void rest(void)
{
    pthread_mutex_lock(&mutex);
    bool busy = false;
    for (int i = 0; i < LANES; i++)
        busy |= is_busy(&lanes[i]);
    if (!busy && !stopping && open_gate) {
        __atomic_store_n(&resting, true, __ATOMIC_SEQ_CST);
        pthread_cond_wait(&wanted, &mutex);
        __atomic_store_n(&resting, false, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&mutex);
}

/* Until the next look; a launch that begins to wait ends a long pause. */
static void pause_between_ticks(void)
{
    const struct timespec tick = {.tv_nsec = TICK_NS};
    struct timespec until;

    pthread_mutex_lock(&mutex);
    bool calm = !stopping && is_calm();
    if (calm) {
        clock_gettime(CLOCK_MONOTONIC, &until);
        add_ns(&until, CALM_TICK_NS);
        pthread_cond_timedwait(&wanted, &mutex, &until);
    }
    pthread_mutex_unlock(&mutex);
    if (!calm)
        nanosleep(&tick, NULL);
}

static void *measure(void *unused)
{
    int mode = CAPTURE_MODE_RELAXED, idle = 0;

    (void)unused;
    pthread_setname_np(pthread_self(), "vgpu-pace");
    if (driver.capture_mode) /* else asking for an event would break captures of the program's threads */
        driver.capture_mode(&mode);
    while (!__atomic_load_n(&stopping, __ATOMIC_SEQ_CST)) {
        idle = tick() ? 0 : idle + 1;
        if (idle >= REST_TICKS)
            rest();
        pause_between_ticks();
    }
    return NULL;
}

/* At exit the driver goes before this library does, and must not be asked any more. */
static void stop(void)
{
    pthread_mutex_lock(&mutex);
    __atomic_store_n(&stopping, true, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&wanted);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void prepare_wanted(void)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&wanted, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* A child has neither its parent's thread nor its streams. */
static void forget_parent(void)
{
    pthread_mutex_init(&mutex, NULL);
    pthread_cond_init(&changed, NULL);
    prepare_wanted();
    memset(lanes, 0, sizeof lanes);
    __atomic_add_fetch(&generation, 1, __ATOMIC_SEQ_CST);
    running = resting = false;
    waiting = 0;
}

static void prepare(void)
{
    prepare_wanted();
    pthread_atfork(NULL, NULL, forget_parent);
    atexit(stop);
}

/* Under the mutex. False: not now; there is no account, or no room for a thread. */
static bool start(struct vgpu_account *mapped)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    sigset_t all, before;
    pthread_t thread;

    if (running || stopping)
        return running;
    account = mapped;
    if (!account)
        return false;
    __atomic_store_n(&lacking, !find_driver(), __ATOMIC_RELAXED);
    if (lacking)
        return false;
    pthread_once(&once, prepare);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before); /* signals are for the program's own threads */
    __atomic_store_n(&open_gate, budget_left(account) > 0, __ATOMIC_SEQ_CST);
    bool started = pthread_create(&thread, NULL, measure, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started)
        pthread_detach(thread);
    __atomic_store_n(&running, started, __ATOMIC_RELEASE);
    return started;
}

/* --- launches --- */

static struct lane *make(void *stream, void *context, const void *thread)
{
    struct lane *spare = NULL;
    int mode = CAPTURE_MODE_RELAXED;

    for (int i = 0; i < LANES; i++) {
        struct lane *lane = &lanes[i];
        if (lane->stream == stream && lane->context == context && lane->thread == thread)
            return lane;
        if (!spare && !lane->stream)
            spare = lane;
    }
    for (int i = 0; i < LANES && !spare; i++)
        if (is_unused(&lanes[i])) {
            spare = &lanes[i];
            drop(spare, true);
        }
    if (!spare)
        return NULL;
    static uint64_t last_serial;
    struct lane made = {
        .stream = stream, .context = context, .thread = thread, .window = FIRST_WINDOW, .serial = ++last_serial};
    if (driver.capture_mode)
        driver.capture_mode(&mode);
    bool can = driver.device(&made.device) == CUDA_SUCCESS && driver.create(&made.start, 0) == CUDA_SUCCESS &&
               driver.create(&made.mark, 0) == CUDA_SUCCESS;
    if (driver.capture_mode)
        driver.capture_mode(&mode);
    if (!can)
        return NULL;
    *spare = made;
    return spare;
}

static void wait_for_change(void)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    pthread_cond_broadcast(&wanted);
    waiting++;
    pthread_cond_timedwait(&changed, &mutex, &until);
    waiting--;
}

/* Is every lane taken by work on the GPU, or by a thread that is about to put some there? */
static bool is_full(void)
{
    for (int i = 0; i < LANES; i++)
        if (!lanes[i].stream || is_unused(&lanes[i]))
            return false;
    return true;
}

static struct lane *lane_of(void *stream, bool per_thread)
{
    static _Thread_local struct {
        struct lane *lane;
        void *stream, *context;
        uint64_t generation;
    } last;
    void *context = last.context;

    if (!stream)
        stream = (void *)(uintptr_t)(per_thread ? STREAM_PER_THREAD : STREAM_LEGACY);
    bool known = last.lane && last.stream == stream &&
                 last.generation == __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
    /* a stream is of one context, but for the handles that name one in each */
    if (known && (uintptr_t)stream > STREAM_PER_THREAD)
        return last.lane;
    if (driver.current(&context) != CUDA_SUCCESS || !context)
        return NULL;
    if (known && last.context == context)
        return last.lane;
    pthread_mutex_lock(&mutex);
    for (uint64_t give_up = now_ns() + PATIENCE_NS; !stopping && is_full() && now_ns() < give_up;)
        wait_for_change();
    last.lane = make(stream, context, (uintptr_t)stream == STREAM_PER_THREAD ? &last : NULL);
    last.generation = __atomic_load_n(&generation, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&mutex);
    last.stream = stream;
    last.context = context;
    return last.lane;
}

static bool has_room(const struct lane *lane)
{
    return __atomic_load_n(&open_gate, __ATOMIC_SEQ_CST) &&
           __atomic_load_n(&lane->submitted, __ATOMIC_SEQ_CST) - __atomic_load_n(&lane->confirmed, __ATOMIC_SEQ_CST) <
               __atomic_load_n(&lane->window, __ATOMIC_RELAXED);
}

/* Of how long the work of a lane is nothing is known yet, or it is long: of those only so many are busy at once. */
static bool is_uncertain(const struct lane *lane) { return lane->window <= FIRST_WINDOW; }

static bool too_many_uncertain(const struct lane *lane)
{
    int busy = 0;

    for (int i = 0; i < LANES && is_uncertain(lane); i++)
        busy += &lanes[i] != lane && is_busy(&lanes[i]) && is_uncertain(&lanes[i]);
    return busy >= UNCERTAIN_MAX;
}

/* Under the mutex. */
static void wait_for_room(const struct lane *lane)
{
    uint64_t give_up = now_ns() + PATIENCE_NS;

    while (!stopping && lane->stream && (!has_room(lane) || too_many_uncertain(lane)) && now_ns() < give_up)
        wait_for_change();
}

/* Under the mutex. The first work of a lane that had none: from now on it is on the GPU. */
static bool begin(struct lane *lane)
{
    lane->span = (struct span){.started_ns = now_ns()};
    lane->begun = false;
    return driver.record(lane->start, lane->stream) == CUDA_SUCCESS;
}

/* Under the mutex. NULL: the launch is not of the GPU's, or the lane was forgotten meanwhile. */
static struct lane *enter_slowly(struct lane *lane)
{
    uint64_t serial = lane->serial;

    if (!lane->stream || capture_of(lane) != CAPTURE_NO)
        return NULL;
    wait_for_room(lane);
    if (!lane->stream || lane->serial != serial || !(is_busy(lane) || begin(lane)))
        return NULL;
    return lane;
}

/* Nobody measures a tenant with the whole GPU; that it is at work is noted all the same, for who rests is stopped. */
static void note_unpaced(void)
{
    static uint64_t noted;
    uint64_t now = clock_ns(CLOCK_MONOTONIC_COARSE);

    if (now - __atomic_load_n(&noted, __ATOMIC_RELAXED) < NOTE_NS)
        return;
    __atomic_store_n(&noted, now, __ATOMIC_RELAXED);
    account_note_busy(now);
}

/* Without its thread nothing is measured: so launches wait for it, as they do for a guard that is away. */
static bool is_paced(void)
{
    for (unsigned waited_ms = 0;; waited_ms += RETRY_MS) {
        if (!tier_is_shim() || __atomic_load_n(&stopping, __ATOMIC_RELAXED))
            return false;
        if (slice_core_now() >= 100000 || __atomic_load_n(&lacking, __ATOMIC_RELAXED)) {
            note_unpaced();
            return false;
        }
        if (__atomic_load_n(&running, __ATOMIC_ACQUIRE))
            return true;
        struct vgpu_account *mapped = account_map(); /* the daemon is asked: others are not to wait for that */
        pthread_mutex_lock(&mutex);
        bool started = start(mapped);
        pthread_mutex_unlock(&mutex);
        if (started)
            return true;
        if (waited_ms == TELL_AFTER_MS)
            fputs("vgpu: this process has no place in its slice's account yet; its work waits for the node's vgpud\n",
                  stderr);
        usleep(RETRY_MS * 1000);
    }
}

struct lane *pace_enter(void *stream, bool per_thread)
{
    if (!is_paced())
        return NULL;
    struct lane *lane = lane_of(stream, per_thread);
    if (lane && !(has_room(lane) && is_busy(lane))) {
        pthread_mutex_lock(&mutex);
        lane = enter_slowly(lane);
        pthread_mutex_unlock(&mutex);
    }
    if (lane)
        __atomic_add_fetch(&lane->entered, 1, __ATOMIC_SEQ_CST);
    return lane;
}

void pace_leave(struct lane *lane)
{
    if (!lane)
        return;
    __atomic_add_fetch(&lane->submitted, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&lane->pending, __ATOMIC_SEQ_CST) && !lane->thread)
        return;
    if (!__atomic_load_n(&lane->left, __ATOMIC_SEQ_CST))
        pthread_mutex_lock(&mutex);
    else if (pthread_mutex_trylock(&mutex) != 0)
        return; /* the next launch, then, or the measuring thread */
    if (lane->stream && (!lane->pending || lane->thread) && !mark_here(lane, now_ns()))
        drop(lane, false);
    if (resting)
        pthread_cond_broadcast(&wanted);
    pthread_mutex_unlock(&mutex);
}

bool pace_hold(void)
{
    if (!__atomic_load_n(&running, __ATOMIC_ACQUIRE))
        return false;
    pthread_mutex_lock(&mutex);
    return true;
}

/* Its work goes on, and its events with it. */
static void orphan(struct lane *lane)
{
    if (is_busy(lane) && (lane->pending || mark_here(lane, now_ns())) && lane->pending) {
        lane->orphan = true;
        lane->thread = NULL;
        lane->stream = lane; /* no stream's */
        __atomic_add_fetch(&generation, 1, __ATOMIC_SEQ_CST);
    } else {
        drop(lane, true);
    }
}

void pace_forget_stream(void *stream)
{
    if (!pace_hold())
        return;
    for (int i = 0; i < LANES; i++)
        if (lanes[i].stream == stream && !lanes[i].orphan)
            orphan(&lanes[i]);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static bool is_of_green(const struct lane *lane, const void *green)
{
    void *its = NULL;

    return (uintptr_t)lane->stream > STREAM_PER_THREAD && driver.green &&
           driver.green(lane->stream, &its) == CUDA_SUCCESS && its == green;
}

void pace_forget_green(const void *green, const void *context)
{
    if (!pace_hold())
        return;
    for (int i = 0; i < LANES; i++)
        if (lanes[i].stream && !lanes[i].orphan && (lanes[i].context == context || is_of_green(&lanes[i], green)))
            orphan(&lanes[i]);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* Under the mutex. */
static void forget(const void *context, int device, bool events_too)
{
    uint64_t now = now_ns();

    for (int i = 0; i < LANES; i++) {
        struct lane *lane = &lanes[i];
        if (!lane->stream || (lane->context != context && lane->device != device))
            continue;
        if (is_busy(lane) && lane->begun)
            budget_charge(account, &lane->span, now);
        drop(lane, events_too);
    }
    pthread_cond_broadcast(&changed);
}

void pace_let_go(bool gone, int device)
{
    if (gone) /* its events with it */
        forget(NO_CONTEXT, device, false);
    pthread_mutex_unlock(&mutex);
}

void pace_forget_context(const void *context, int device)
{
    if (!pace_hold())
        return;
    forget(context, device, true);
    pthread_mutex_unlock(&mutex);
}
