#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "hook.h"

#define BUCKETS 1024u
#define AWAY_PAUSE_US 100000u
#define AWAY_PAUSES 300 /* half a minute: a daemon that is restarted is back long before */

struct block {
    uint64_t address, bytes;
    struct block *next;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct block *buckets[BUCKETS];
static uint64_t total; /* as the daemon knows it */
static unsigned count;

static struct block **bucket_of(uint64_t address) { return &buckets[(address >> 12) * 0x9E3779B97F4A7C15ull >> 54]; }
_Static_assert(BUCKETS == 1u << (64 - 54), "bucket_of");

/* A forked child has none of its parent's memory; and of its threads one, which need not be who held the mutex. */
static void forget_parent(void)
{
    pthread_mutex_init(&mutex, NULL);
    for (unsigned i = 0; i < BUCKETS; i++)
        buckets[i] = NULL; /* the nodes may be half linked: left alone */
    total = 0;
    __atomic_store_n(&count, 0, __ATOMIC_RELAXED);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_parent); }

static struct block **find(uint64_t address)
{
    struct block **link = bucket_of(address);

    while (*link && (*link)->address != address)
        link = &(*link)->next;
    return link;
}

/* Under the mutex. No answer means to wait: neither unlimited nor an error that is not the program's. */
static bool tell(uint64_t bytes)
{
    enum daemon_answer answer = daemon_set_managed(bytes);

    for (int i = 0; answer == DAEMON_AWAY && i < AWAY_PAUSES; i++) {
        usleep(AWAY_PAUSE_US);
        answer = daemon_set_managed(bytes);
    }
    if (answer == DAEMON_YES)
        total = bytes;
    return answer == DAEMON_YES;
}

/* Under the mutex: blocks that the driver no longer knows. */
static uint64_t drop_dead(void)
{
    int (*attribute)(void *, int, uint64_t) = (int (*)(void *, int, uint64_t))real_symbol("libcuda.so.1",
                                                                                          "cuPointerGetAttribute");
    const int is_managed = 8; /* CU_POINTER_ATTRIBUTE_IS_MANAGED */
    uint64_t dropped = 0;

    for (unsigned i = 0; attribute && i < BUCKETS; i++)
        for (struct block **link = &buckets[i]; *link;) {
            struct block *block = *link;
            unsigned yes = 0;
            if (attribute(&yes, is_managed, block->address) == 0 && yes) {
                link = &block->next;
                continue;
            }
            dropped += block->bytes;
            *link = block->next;
            free(block);
            __atomic_sub_fetch(&count, 1, __ATOMIC_RELAXED);
        }
    return dropped;
}

bool managed_reserve(uint64_t bytes)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    uint64_t wanted;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&mutex);
    bool fits = !__builtin_add_overflow(total, bytes, &wanted) && tell(wanted);
    if (!fits) {
        uint64_t dropped = drop_dead();
        fits = dropped && tell(total - dropped) && tell(total + bytes);
    }
    pthread_mutex_unlock(&mutex);
    return fits;
}

void managed_release(uint64_t bytes)
{
    pthread_mutex_lock(&mutex);
    tell(total > bytes ? total - bytes : 0);
    pthread_mutex_unlock(&mutex);
}

void managed_keep(uint64_t address, uint64_t bytes)
{
    struct block *block = malloc(sizeof *block);

    if (!block) /* it stays on the account until the process ends */
        return;
    pthread_mutex_lock(&mutex);
    struct block **first = bucket_of(address);
    *block = (struct block){address, bytes, *first};
    *first = block;
    __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&mutex);
}

uint64_t managed_take(uint64_t address)
{
    uint64_t bytes = 0;

    if (!__atomic_load_n(&count, __ATOMIC_RELAXED)) /* nearly always */
        return 0;
    pthread_mutex_lock(&mutex);
    struct block **link = find(address), *block = *link;
    if (block) {
        bytes = block->bytes;
        *link = block->next;
        __atomic_sub_fetch(&count, 1, __ATOMIC_RELAXED);
        free(block);
    }
    pthread_mutex_unlock(&mutex);
    return bytes;
}

void managed_sweep(void)
{
    if (!__atomic_load_n(&count, __ATOMIC_RELAXED))
        return;
    pthread_mutex_lock(&mutex);
    uint64_t dropped = drop_dead();
    if (dropped)
        tell(total > dropped ? total - dropped : 0);
    pthread_mutex_unlock(&mutex);
}
