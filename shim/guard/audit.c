#define _GNU_SOURCE
#include "audit.h"

#include <stdlib.h>

#include "backend.h"
#include "files.h"
#include "ledger.h"

#define OFTEN_NS 1000000000ull
#define SELDOM_NS 5000000000ull
#define AGAIN_NS 40000000ull /* after something was found: it has to be there still */
#define SLACK (64ull << 20)  /* the driver's account may be late */

static int by_number(const void *a, const void *b)
{
    pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;
    return x < y ? -1 : x > y;
}

/* Who made the tenant's clients, each once; and the bytes on its account. */
static int list_makers(int slot, pid_t *pids, int max, int *gpu, uint64_t *used)
{
    int count = 0, once = 0;

    ledger_lock();
    *gpu = tenants[slot].gpu;
    *used = tenants[slot].used;
    for (const struct ledger_object *root = ledger_first_root(slot); root && count < max;
         root = ledger_next_listed(root))
        pids[count++] = root->pid;
    ledger_unlock();
    qsort(pids, (size_t)count, sizeof *pids, by_number);
    for (int i = 0; i < count; i++)
        if (!once || pids[i] != pids[once - 1])
            pids[once++] = pids[i];
    return once;
}

static uint64_t find_excess(int slot)
{
    pid_t pids[FILES_MAX];
    uint64_t before, after, driver;
    int gpu, count = list_makers(slot, pids, FILES_MAX, &gpu, &before);

    if (!count || !backend->memory_of(gpu, pids, count, &driver))
        return 0;
    ledger_lock();
    after = tenants[slot].used;
    ledger_unlock();
    /* what is made is counted before, what is freed after: the larger of both is at least what there was */
    uint64_t counted = before > after ? before : after;
    return driver > counted + SLACK ? driver - counted : 0;
}

uint64_t audit_tenant(struct audit *audit, int slot, bool unsure, uint64_t now)
{
    uint64_t pause = audit->excess ? AGAIN_NS : unsure ? OFTEN_NS : SELDOM_NS, before = audit->excess;

    if (now - audit->done_ns < pause)
        return 0;
    audit->done_ns = now;
    audit->excess = find_excess(slot);
    return before ? audit->excess : 0;
}
