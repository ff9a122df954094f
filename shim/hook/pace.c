#define _GNU_SOURCE
#include "pace.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hook.h"

#define LANES 256
#define TICK_NS 500000ull
#define REST_TICKS 40        /* without work, then the thread sleeps until there is some */
#define WINDOW_MAX 4096      /* launches */
#define SHORT_NS 2000000ull  /* work in flight is kept between these: less would leave the GPU waiting, more would */
#define LONG_NS 5000000ull   /* run on for long after the budget is used up */
#define SAVED_NS 20000000ull /* a tenant that rested may use so much of the GPU at once, of its share */
#define PATIENCE_NS 5000000000ull /* then a launch goes on: what is on the GPU may be waiting for it */
#define REFILL_NS 200000ull

enum { CUDA_SUCCESS = 0, CUDA_ERROR_NOT_READY = 600 };
enum { STREAM_LEGACY = 1, STREAM_PER_THREAD = 2, CAPTURE_MODE_RELAXED = 2 };

/* A stream that work was put on. */
struct lane {
    void *stream, *context;
    const void *thread; /* of a stream of the thread's own */
    void *start, *mark; /* events: before its work began, and after `marked` launches */
    uint64_t submitted, confirmed, marked;
    uint64_t started_ns, marked_ns, charged_ns, charged_from_ns;
    unsigned window;
    bool pending; /* the mark is not reached yet */
};

static struct {
    int (*create)(void **, unsigned), (*record)(void *, void *), (*query)(void *), (*destroy)(void *);
    int (*elapsed)(float *, void *, void *), (*capturing)(void *, int *), (*current)(void **);
    int (*push)(void *), (*pop)(void **), (*capture_mode)(int *);
} driver;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER, wanted = PTHREAD_COND_INITIALIZER;
static struct lane lanes[LANES];
static uint64_t generation; /* of lanes: what a thread remembers is as old as this */
static bool running, stopping, resting, open_gate;
static struct vgpu_account *account;
static struct vgpu_account_row *row;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
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
    FIND(push, "cuCtxPushCurrent_v2");
    FIND(pop, "cuCtxPopCurrent_v2");
    FIND(capture_mode, "cuThreadExchangeStreamCaptureMode");
#undef FIND
    return driver.create && driver.record && driver.query && driver.destroy && driver.elapsed && driver.capturing &&
           driver.current && driver.push && driver.pop;
}

/* --- the tenant's budget, which its processes use together --- */

/* Time [from, until) on the GPU; what another process, or another stream, has paid for is paid. */
static void charge(struct lane *lane, uint64_t until)
{
    uint64_t from = lane->charged_ns > lane->started_ns ? lane->charged_ns : lane->started_ns;
    uint64_t covered = __atomic_load_n(&account->covered_until, __ATOMIC_SEQ_CST);

    do {
        if (until <= covered || until <= from)
            return;
        if (covered > from)
            from = covered;
    } while (!__atomic_compare_exchange_n(&account->covered_until, &covered, until, false, __ATOMIC_SEQ_CST,
                                          __ATOMIC_SEQ_CST));
    __atomic_sub_fetch(&account->budget, (int64_t)(until - from), __ATOMIC_SEQ_CST);
    lane->charged_from_ns = from;
    lane->charged_ns = until;
}

/* The lane's work ended then: perhaps after it was last charged for, perhaps before. Nothing is given back that others
 * have come to rely on. */
static void settle(struct lane *lane, uint64_t ended_ns, uint64_t now)
{
    charge(lane, ended_ns < now ? ended_ns : now);
    uint64_t claimed = lane->charged_ns, end = ended_ns > lane->charged_from_ns ? ended_ns : lane->charged_from_ns;

    if (end < claimed &&
        __atomic_compare_exchange_n(&account->covered_until, &claimed, end, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        __atomic_add_fetch(&account->budget, (int64_t)(lane->charged_ns - end), __ATOMIC_SEQ_CST);
}

static void refill(uint64_t now)
{
    uint64_t last = __atomic_load_n(&account->budget_at, __ATOMIC_SEQ_CST), share = slice_core_now();
    int64_t most = (int64_t)(SAVED_NS * share / 100000);

    if (now < last + REFILL_NS ||
        !__atomic_compare_exchange_n(&account->budget_at, &last, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return;
    uint64_t passed = now - last < PATIENCE_NS ? now - last : PATIENCE_NS;
    int64_t budget = __atomic_load_n(&account->budget, __ATOMIC_SEQ_CST), more;
    do {
        more = budget + (int64_t)(passed * share / 100000);
        if (more > most)
            more = most;
    } while (!__atomic_compare_exchange_n(&account->budget, &budget, more, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
}

/* --- lanes; under the mutex --- */

static bool is_busy(const struct lane *lane)
{
    return lane->stream &&
           __atomic_load_n(&lane->submitted, __ATOMIC_SEQ_CST) != __atomic_load_n(&lane->confirmed, __ATOMIC_SEQ_CST);
}

/* What is captured is not on the GPU. The driver does not say of a context's default stream while another is captured.
 */
enum capture { CAPTURE_NO, CAPTURE_YES, CAPTURE_UNKNOWN };

static enum capture capture_of(const struct lane *lane)
{
    int status = 0;

    if (driver.capturing(lane->stream, &status) != CUDA_SUCCESS)
        return CAPTURE_UNKNOWN;
    return status ? CAPTURE_YES : CAPTURE_NO;
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
    case CAPTURE_YES: __atomic_store_n(&lane->confirmed, lane->submitted, __ATOMIC_SEQ_CST); break;
    case CAPTURE_UNKNOWN: break; /* at the next tick, then */
    }
    return true;
}

static void mark_anew(struct lane *lane, uint64_t now)
{
    if (lane->thread) /* only that thread can; it marks each of its launches */
        return;
    driver.push(lane->context); /* whose default stream it may be */
    bool good = mark_here(lane, now);
    driver.pop(&(void *){NULL});
    if (!good)
        drop(lane, false);
}

/* The mark was reached: what came after it is marked anew, or the lane has nothing on the GPU. */
static void reached(struct lane *lane, uint64_t now)
{
    float milliseconds = 0;

    fit_window(lane, now - lane->marked_ns);
    __atomic_store_n(&lane->pending, false, __ATOMIC_SEQ_CST);
    __atomic_store_n(&lane->confirmed, lane->marked, __ATOMIC_SEQ_CST);
    if (!is_busy(lane)) {
        if (driver.elapsed(&milliseconds, lane->start, lane->mark) == CUDA_SUCCESS)
            settle(lane, lane->started_ns + (uint64_t)((double)milliseconds * 1e6), now);
        else
            charge(lane, now);
        return;
    }
    charge(lane, now);
    mark_anew(lane, now);
}

static bool look_at(struct lane *lane, uint64_t now)
{
    if (!is_busy(lane))
        return false;
    if (!lane->pending) { /* it could not be marked when it was handed in */
        charge(lane, now);
        mark_anew(lane, now);
        return true;
    }
    int rc = driver.query(lane->mark);
    if (rc == CUDA_SUCCESS)
        reached(lane, now);
    else if (rc == CUDA_ERROR_NOT_READY)
        charge(lane, now);
    else
        drop(lane, false); /* its context is gone, or broken */
    return true;
}

/* --- the thread that measures --- */

static bool tick(void)
{
    uint64_t now = now_ns();
    bool busy = false;

    pthread_mutex_lock(&mutex);
    for (int i = 0; i < LANES; i++)
        busy |= lanes[i].stream && look_at(&lanes[i], now);
    refill(now);
    if (busy && row)
        __atomic_store_n(&row->busy_at, now, __ATOMIC_RELAXED);
    __atomic_store_n(&open_gate, __atomic_load_n(&account->budget, __ATOMIC_SEQ_CST) > 0, __ATOMIC_SEQ_CST);
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

static void *measure(void *unused)
{
    const struct timespec pause = {.tv_nsec = TICK_NS};
    int mode = CAPTURE_MODE_RELAXED, idle = 0;

    (void)unused;
    pthread_setname_np(pthread_self(), "vgpu-pace");
    if (driver.capture_mode) /* else asking for an event would break captures of the program's threads */
        driver.capture_mode(&mode);
    while (!__atomic_load_n(&stopping, __ATOMIC_SEQ_CST)) {
        idle = tick() ? 0 : idle + 1;
        if (idle >= REST_TICKS)
            rest();
        nanosleep(&pause, NULL);
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

/* A child has neither its parent's thread nor its streams. */
static void forget_parent(void)
{
    pthread_mutex_init(&mutex, NULL);
    pthread_cond_init(&changed, NULL);
    pthread_cond_init(&wanted, NULL);
    memset(lanes, 0, sizeof lanes);
    __atomic_add_fetch(&generation, 1, __ATOMIC_SEQ_CST);
    running = resting = false;
    row = NULL;
}

static void prepare(void)
{
    pthread_atfork(NULL, NULL, forget_parent);
    atexit(stop);
}

/* Under the mutex. False: launches go on unpaced; the driver has no events, or there is no more room for a thread. */
static bool start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    sigset_t all, before;
    pthread_t thread;

    if (running || stopping)
        return running;
    account = account_map(&row);
    if (!account || !find_driver())
        return false;
    pthread_once(&once, prepare);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before); /* signals are for the program's own threads */
    __atomic_store_n(&open_gate, __atomic_load_n(&account->budget, __ATOMIC_SEQ_CST) > 0, __ATOMIC_SEQ_CST);
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
        if (!is_busy(&lanes[i])) {
            spare = &lanes[i];
            drop(spare, true);
        }
    if (!spare)
        return NULL;
    struct lane made = {.stream = stream, .context = context, .thread = thread, .window = 2};
    if (driver.capture_mode)
        driver.capture_mode(&mode);
    bool can = driver.create(&made.start, 0) == CUDA_SUCCESS && driver.create(&made.mark, 0) == CUDA_SUCCESS;
    if (driver.capture_mode)
        driver.capture_mode(&mode);
    if (!can)
        return NULL;
    *spare = made;
    return spare;
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

/* Under the mutex. */
static void wait_for_room(const struct lane *lane)
{
    uint64_t give_up = now_ns() + PATIENCE_NS;

    while (!stopping && lane->stream && !has_room(lane) && now_ns() < give_up) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        pthread_cond_broadcast(&wanted);
        pthread_cond_timedwait(&changed, &mutex, &until);
    }
}

/* Under the mutex. The first work of a lane that had none: from now on it is on the GPU. */
static bool begin(struct lane *lane)
{
    lane->started_ns = now_ns();
    return driver.record(lane->start, lane->stream) == CUDA_SUCCESS;
}

struct lane *pace_enter(void *stream, bool per_thread)
{
    if (!tier_is_shim() || slice_core_now() >= 100000 || __atomic_load_n(&stopping, __ATOMIC_RELAXED))
        return NULL;
    if (!__atomic_load_n(&running, __ATOMIC_ACQUIRE)) {
        pthread_mutex_lock(&mutex);
        bool started = start();
        pthread_mutex_unlock(&mutex);
        if (!started)
            return NULL;
    }
    struct lane *lane = lane_of(stream, per_thread);
    if (!lane || (has_room(lane) && is_busy(lane)))
        return lane;
    pthread_mutex_lock(&mutex);
    bool counted = lane->stream && capture_of(lane) == CAPTURE_NO;
    if (counted) {
        wait_for_room(lane);
        counted = lane->stream && (is_busy(lane) || begin(lane)); /* it may have been forgotten meanwhile */
    }
    pthread_mutex_unlock(&mutex);
    return counted ? lane : NULL;
}

void pace_leave(struct lane *lane)
{
    if (!lane)
        return;
    __atomic_add_fetch(&lane->submitted, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&lane->pending, __ATOMIC_SEQ_CST) && !lane->thread)
        return;
    pthread_mutex_lock(&mutex);
    if (lane->stream && (!lane->pending || lane->thread) && !mark_here(lane, now_ns()))
        drop(lane, false);
    if (resting)
        pthread_cond_broadcast(&wanted);
    pthread_mutex_unlock(&mutex);
}

void pace_forget(void *stream)
{
    if (!__atomic_load_n(&running, __ATOMIC_ACQUIRE))
        return;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < LANES; i++)
        if (lanes[i].stream && (!stream || lanes[i].stream == stream))
            drop(&lanes[i], true);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}
