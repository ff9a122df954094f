/* Who may be on the GPU for how long. Pure; docs/scheduling.md explains it. */
#ifndef VGPU_GUARD_POLICY_H
#define VGPU_GUARD_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#define POLICY_FULL 100000u /* millipercent of one GPU */
#define POLICY_PERIOD_NS 100000000ull
#define POLICY_VISIT_NS 5000000ull /* one who wakes may interrupt for so long at once */
#define POLICY_SHARES_MAX 1024

struct share {
    int slot;
    uint32_t millipercent, policy;
};
/* A tenant's turn in each period. */
struct turn {
    int slot;
    uint64_t ns;
};

/*
 * Divide a period among the tenants that have work on one GPU.
 * hard: its percent, less when all together ask for over 100. burst: that, and an equal part of what is left over when
 * those who had no work have taken `visited_ns` by their visits. What the turns don't fill is nobody's.
 */
void policy_plan(const struct share *shares, int count, uint64_t period_ns, uint64_t visited_ns, struct turn *turns);
/* What one of several who were promised `promised` millipercent in all may have of a period. */
uint64_t policy_share_ns(uint32_t millipercent, uint64_t promised, uint64_t period_ns);

/* What a tenant has left of its time, in ns: below 0 it had too much, and gives that back out of later turns. */
struct allowance {
    int64_t left;
    uint64_t given_ns; /* when it was last filled */
};

/*
 * Its turn begins: what it was short of or over by, within limits, and the turn. A visit a moment ago was part of it.
 */
void policy_give_turn(struct allowance *allowance, uint64_t now, uint64_t turn_ns);
/* More in the same period: what others left. */
void policy_give_more(struct allowance *allowance, uint64_t ns);
/* It woke and asks to interrupt others: how long it may, 0 when it has had its share of this period. */
uint64_t policy_give_visit(struct allowance *allowance, uint64_t now, uint64_t share_ns);
void policy_take(struct allowance *allowance, uint64_t ns);

/*
 * When a tenant that has nothing to do is taken for idle. Waiting costs the others; letting go and coming back costs
 * it and them as much: so it waits for about as long as coming back takes, and longer where it turned out to be busy.
 * Only time on the GPU counts, over several turns where one is short.
 */
struct patience {
    uint64_t quiet_since, quiet_ns, needed_ns; /* quiet_ns: while it is off, how long it was quiet before */
};
void policy_forget(struct patience *patience); /* it was asleep */
void policy_stir(struct patience *patience, uint64_t now);
void policy_leave(struct patience *patience, uint64_t now);
void policy_come_back(struct patience *patience, uint64_t now);
bool policy_is_quiet(const struct patience *patience, uint64_t now);
void policy_was_busy(struct patience *patience, uint64_t now);

#endif
