#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "hook.h"

#define BUCKETS 1024u
#define AWAY_PAUSE_US 100000u
#define AWAY_PAUSES 300     /* half a minute: a daemon that is restarted is back long before */
#define AWAY_REST_SECONDS 2 /* so long is nobody told of what was freed after nobody was there */

struct block {
    uint64_t address, bytes;
    struct block *next;
};

/* The table is held for moments; the account while the daemon is spoken to, which may take as long as it is away. */
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER, account = PTHREAD_MUTEX_INITIALIZER;
static struct block *buckets[BUCKETS];
static unsigned count; /* of blocks */
static uint64_t total; /* what this process holds */
static uint64_t told;  /* and what the daemon knows of; under `account` */
static time_t away_until;

static struct block **bucket_of(uint64_t address) { return &buckets[(address >> 12) * 0x9E3779B97F4A7C15ull >> 54]; }
_Static_assert(BUCKETS == 1u << (64 - 54), "bucket_of");

/* A forked child has none of its parent's memory; and of its threads one, which need not be who held a mutex. */
static void forget_parent(void)
{
    pthread_mutex_init(&table, NULL);
    pthread_mutex_init(&account, NULL);
    for (unsigned i = 0; i < BUCKETS; i++)
        buckets[i] = NULL; /* the nodes may be half linked: left alone */
    total = told = 0;
    __atomic_store_n(&count, 0, __ATOMIC_RELAXED);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_parent); }

static uint64_t held(void) { return __atomic_load_n(&total, __ATOMIC_RELAXED); }

static time_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return t.tv_sec;
}

/* Under `account`. */
static enum daemon_answer say(uint64_t bytes)
{
    if (!tier_is_shim())
        return daemon_set_managed(bytes);
    if (bytes > told)
        return account_take(bytes - told, MEMORY_MANAGED) ? DAEMON_YES : DAEMON_NO;
    account_give(told - bytes, MEMORY_MANAGED);
    return DAEMON_YES;
}

/* Under `account`. The sum is said, not the change: so it may be said twice, or once for several changes. */
static enum daemon_answer tell(uint64_t bytes)
{
    enum daemon_answer answer = say(bytes);

    if (answer == DAEMON_YES)
        told = bytes;
    return answer;
}

/* Under `account`: nobody is waited for, for what is freed is never refused; the next word says it too. */
static void tell_what_is_held(void)
{
    if (told != held() && now() >= away_until && tell(held()) == DAEMON_AWAY)
        away_until = now() + AWAY_REST_SECONDS;
}

/* Under `account`. No answer means to wait: neither unlimited nor an error that is not the program's. */
static bool tell_more(uint64_t bytes)
{
    for (int i = 0; i < AWAY_PAUSES; i++) {
        uint64_t wanted; /* others may free meanwhile */
        if (__builtin_add_overflow(held(), bytes, &wanted))
            return false;
        enum daemon_answer answer = tell(wanted);
        if (answer == DAEMON_YES)
            __atomic_add_fetch(&total, bytes, __ATOMIC_RELAXED);
        if (answer != DAEMON_AWAY)
            return answer == DAEMON_YES;
        usleep(AWAY_PAUSE_US);
    }
    return false;
}

/* Under `table`. Other errors than these two are about the caller, not about the memory. */
static bool is_gone(int (*attribute)(void *, int, uint64_t), uint64_t address)
{
    enum { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1, CU_POINTER_ATTRIBUTE_IS_MANAGED = 8 };
    unsigned managed = 0;
    int rc = attribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address);

    return rc == CUDA_ERROR_INVALID_VALUE || (rc == CUDA_SUCCESS && !managed);
}

/* Blocks that the driver no longer knows leave the table and the sum. False: there were none. */
static bool drop_gone(void)
{
    int (*attribute)(void *, int, uint64_t) = (int (*)(void *, int, uint64_t))real_symbol("libcuda.so.1",
                                                                                          "cuPointerGetAttribute");
    bool any = false;

    pthread_mutex_lock(&table);
    for (unsigned i = 0; attribute && i < BUCKETS; i++)
        for (struct block **link = &buckets[i]; *link;) {
            struct block *block = *link;
            if (!is_gone(attribute, block->address)) {
                link = &block->next;
                continue;
            }
            *link = block->next;
            __atomic_sub_fetch(&total, block->bytes, __ATOMIC_RELAXED);
            __atomic_sub_fetch(&count, 1, __ATOMIC_RELAXED);
            free(block);
            any = true;
        }
    pthread_mutex_unlock(&table);
    return any;
}

bool managed_reserve(uint64_t bytes)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&account);
    bool fits = tell_more(bytes) || (drop_gone() && tell_more(bytes));
    tell_what_is_held();
    pthread_mutex_unlock(&account);
    return fits;
}

void managed_release(uint64_t bytes)
{
    __atomic_sub_fetch(&total, bytes, __ATOMIC_RELAXED);
    if (pthread_mutex_trylock(&account) != 0) /* who has it says the sum before letting go */
        return;
    tell_what_is_held();
    pthread_mutex_unlock(&account);
}

void managed_keep(uint64_t address, uint64_t bytes)
{
    struct block *block = malloc(sizeof *block);

    if (!block) /* it stays on the account until the process ends */
        return;
    pthread_mutex_lock(&table);
    struct block **first = bucket_of(address);
    *block = (struct block){address, bytes, *first};
    *first = block;
    __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&table);
}

uint64_t managed_take(uint64_t address)
{
    uint64_t bytes = 0;

    if (!__atomic_load_n(&count, __ATOMIC_RELAXED)) /* nearly always */
        return 0;
    pthread_mutex_lock(&table);
    struct block **link = bucket_of(address);
    while (*link && (*link)->address != address)
        link = &(*link)->next;
    struct block *block = *link;
    if (block) {
        bytes = block->bytes;
        *link = block->next;
        __atomic_sub_fetch(&count, 1, __ATOMIC_RELAXED);
        free(block);
    }
    pthread_mutex_unlock(&table);
    return bytes;
}

void managed_sweep(void)
{
    if (__atomic_load_n(&count, __ATOMIC_RELAXED) && drop_gone())
        managed_release(0);
}
