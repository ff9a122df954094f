/* This process' row of the tenant's account, in tier `shim`. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hook.h"

#define ATTEMPTS 16
#define RETREAT_US 200u

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct vgpu_account *account;
static struct vgpu_account_row *row;
static uint32_t number;  /* this process', as the node sees it: the row is its own as long as that stands there */
static uint64_t held[2]; /* by this process: device memory, managed */

static void forget_parent(void)
{
    pthread_mutex_init(&mutex, NULL);
    __atomic_store_n(&row, NULL, __ATOMIC_RELAXED);
    held[0] = held[1] = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_parent); }

bool tier_is_shim(void)
{
    static int counts; /* 1: no, 2: yes; two threads may both find out */
    int known = __atomic_load_n(&counts, __ATOMIC_RELAXED);

    if (!known) {
        const char *tier = getenv(VGPU_ENV_TIER);
        known = tier && strcmp(tier, "shim") == 0 ? 2 : 1;
        __atomic_store_n(&counts, known, __ATOMIC_RELAXED);
    }
    return known == 2;
}

static void publish(void)
{
    __atomic_store_n(&row->device, held[0], __ATOMIC_SEQ_CST);
    __atomic_store_n(&row->managed, held[1], __ATOMIC_SEQ_CST);
}

/* The daemon gives a row to another process when it takes this one for gone: its connection was closed. */
static bool owns_row(void) { return row && __atomic_load_n(&row->pid, __ATOMIC_ACQUIRE) == number; }

/* Under the mutex. */
static bool attach(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    unsigned place = 0;

    if (owns_row())
        return true;
    pthread_once(&once, watch_forks);
    int fd = daemon_open_account(&place);
    if (fd < 0)
        return false;
    void *map = place < VGPU_ACCOUNT_ROWS ? mmap(NULL, sizeof *account, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                                          : MAP_FAILED;
    close(fd);
    if (map == MAP_FAILED)
        return false;
    /* an older map stays: another thread may be reading it */
    account = map;
    number = __atomic_load_n(&account->rows[place].pid, __ATOMIC_ACQUIRE);
    __atomic_store_n(&row, &account->rows[place], __ATOMIC_RELEASE);
    publish();
    return true;
}

struct vgpu_account *account_map(void)
{
    pthread_mutex_lock(&mutex);
    struct vgpu_account *mapped = attach() ? account : NULL;
    pthread_mutex_unlock(&mutex);
    return mapped;
}

void account_note_busy(uint64_t now)
{
    pthread_mutex_lock(&mutex);
    if (owns_row())
        __atomic_store_n(&row->busy_at, now, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&mutex);
}

struct sums {
    uint64_t device, all;
};

static struct sums sum(void)
{
    struct sums sums = {0};
    uint32_t end = __atomic_load_n(&account->rows_end, __ATOMIC_ACQUIRE);

    for (uint32_t i = 0; i < end && i < VGPU_ACCOUNT_ROWS; i++) {
        uint64_t device = __atomic_load_n(&account->rows[i].device, __ATOMIC_SEQ_CST);
        sums.device += device;
        sums.all += device + __atomic_load_n(&account->rows[i].managed, __ATOMIC_SEQ_CST);
    }
    return sums;
}

static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

/* So much may be taken more, of the device's own memory or of managed. */
static uint64_t room(const struct slice *slice, enum memory_kind kind)
{
    struct sums sums = sum();
    uint64_t all = less(slice->limit, sums.all), own = less(slice->quota, sums.device);

    return kind == MEMORY_MANAGED || all < own ? all : own;
}

static bool is_over(const struct slice *slice, enum memory_kind kind)
{
    struct sums sums = sum();
    return sums.all > slice->limit || (kind == MEMORY_DEVICE && sums.device > slice->quota);
}

void account_correct(struct slice *slice)
{
    if (__atomic_load_n(&row, __ATOMIC_ACQUIRE))
        slice->free = room(slice, MEMORY_DEVICE);
}

/*
 * First it is written, then looked at: of two processes that take the last room at once at least one sees the other.
 * Both may, and step back; then they try again, not at the same moment.
 */
static bool take(uint64_t bytes, enum memory_kind kind)
{
    struct slice slice;

    if (!attach() || !slice_read(&slice))
        return false;
    for (int i = 0; i < ATTEMPTS && bytes <= room(&slice, kind); i++) {
        held[kind] += bytes;
        publish();
        if (!is_over(&slice, kind))
            return true;
        held[kind] -= bytes;
        publish();
        usleep(RETREAT_US * (1 + (unsigned)getpid() % 7));
    }
    return false;
}

bool account_take(uint64_t bytes, enum memory_kind kind)
{
    pthread_mutex_lock(&mutex);
    bool taken = take(bytes, kind);
    pthread_mutex_unlock(&mutex);
    if (!taken)
        report_full(bytes);
    return taken;
}

void account_give(uint64_t bytes, enum memory_kind kind)
{
    pthread_mutex_lock(&mutex);
    held[kind] -= bytes < held[kind] ? bytes : held[kind];
    if (attach())
        publish();
    pthread_mutex_unlock(&mutex);
}
