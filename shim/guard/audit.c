#define _GNU_SOURCE
#include "audit.h"

#include "backend.h"
#include "files.h"
#include "ledger.h"
#include "processes.h"
#include "reach.h"
#include "util.h"

#define OFTEN_NS 1000000000ull
#define SELDOM_NS 5000000000ull
#define AGAIN_NS 300000000ull /* after something was found: the driver may still be taking down what was closed, */
#define FOUND_ENOUGH 4        /* and is done with that by then */
#define SLACK (64ull << 20)   /* the driver's account may be late */

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

    ledger_lock();
    int gpu = tenants[slot].gpu, count = processes_list(slot, pids, FILES_MAX);
    tenants[slot].most = device_bytes(&tenants[slot]);
    ledger_unlock();
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
