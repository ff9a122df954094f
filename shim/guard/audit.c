#define _GNU_SOURCE
#include "audit.h"

#include <stdlib.h>

#include "backend.h"
#include "files.h"
#include "ledger.h"
#include "reach.h"
#include "util.h"

#define OFTEN_NS 1000000000ull
#define SELDOM_NS 5000000000ull
#define AGAIN_NS 300000000ull /* after something was found: the driver may still be taking down what was closed, */
#define FOUND_ENOUGH 4        /* and is done with that by then */
#define SLACK (64ull << 20)   /* the driver's account may be late */

static int by_number(const void *a, const void *b)
{
    pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;
    return x < y ? -1 : x > y;
}

/* Who made the tenant's clients, each once. */
static int list_makers(int slot, pid_t *pids, int max, int *gpu)
{
    int count = 0, once = 0;

    ledger_lock();
    *gpu = tenants[slot].gpu;
    tenants[slot].most = device_bytes(&tenants[slot]);
    for (const struct ledger_object *root = ledger_first_root(slot); root && count < max;
         root = ledger_next_listed(root))
        if (!IS_MANAGED_ROOT(root->root)) /* the driver has no account of it */
            pids[count++] = root->pid;
    ledger_unlock();
    qsort(pids, (size_t)count, sizeof *pids, by_number);
    for (int i = 0; i < count; i++)
        if (!once || pids[i] != pids[once - 1])
            pids[once++] = pids[i];
    return once;
}

/* A maker's number that is somebody else's by now would bring his memory onto this account. */
static int drop_reused(pid_t *pids, int count, const pid_t *members, int member_count)
{
    int kept = 0;

    for (int i = 0; i < count; i++)
        if (is_among((uint32_t)pids[i], (const uint32_t *)members, (size_t)member_count) || reach_has_exited(pids[i]))
            pids[kept++] = pids[i];
    return kept;
}

static uint64_t find_excess(int slot, const pid_t *members, int member_count)
{
    pid_t pids[FILES_MAX];
    uint64_t driver;
    int gpu, count = list_makers(slot, pids, FILES_MAX, &gpu);

    count = drop_reused(pids, count, members, member_count);
    if (!count || !backend->memory_of(gpu, pids, count, &driver))
        return 0;
    ledger_lock();
    uint64_t most = tenants[slot].most; /* since before the driver was asked: memory comes and goes meanwhile */
    ledger_unlock();
    return driver > most + SLACK ? driver - most : 0;
}

uint64_t audit_tenant(struct audit *audit, int slot, bool unsure, const pid_t *members, int count, uint64_t now)
{
    if (now - audit->done_ns < (audit->found ? AGAIN_NS : unsure ? OFTEN_NS : SELDOM_NS))
        return 0;
    audit->done_ns = now;
    uint64_t excess = find_excess(slot, members, count);
    audit->found = excess ? audit->found + 1 : 0;
    return audit->found >= FOUND_ENOUGH ? excess : 0;
}
