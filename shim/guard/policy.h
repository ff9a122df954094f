/* Who may be on the GPU for how long. Pure; docs/scheduling.md explains it. */
#ifndef VGPU_GUARD_POLICY_H
#define VGPU_GUARD_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#define POLICY_FULL 100000u /* millipercent of one GPU */
#define POLICY_PERIOD_NS 100000000ull
#define POLICY_VISIT_NS 5000000ull /* one who wakes may interrupt for so long at once */
#define POLICY_SHARES_MAX 256

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
 * hard: its percent, less when all together ask for over 100. burst: that, and an equal part of what is left over.
 * Returns the number of turns; what they don't fill is nobody's.
 */
int policy_plan(const struct share *shares, int count, uint64_t period_ns, struct turn *turns);

/* What a tenant has left of its time, in ns: below 0 it had too much, and gives that back out of later turns. */
struct allowance {
    int64_t left;
    uint64_t given_ns; /* when it was last filled */
};

/* Its turn begins: what it was short of or over by, within limits, and the turn. */
void policy_give_turn(struct allowance *allowance, uint64_t now, uint64_t turn_ns);
/* It woke and asks to interrupt others: how long it may, 0 when it has had its share of this period. */
uint64_t policy_give_visit(struct allowance *allowance, uint64_t now, uint64_t share_ns);
void policy_take(struct allowance *allowance, uint64_t ns);
/* An interruption costs the others more than the time that it lasts. */
void policy_charge_visit(struct allowance *allowance);

/*
 * When a tenant that has nothing to do is taken for idle. Waiting costs the others; letting go and coming back costs
 * it and them as much: so it waits for about as long as coming back takes, and longer where it turned out to be busy.
 */
struct patience {
    uint64_t quiet_since, needed_ns;
};
void policy_stir(struct patience *patience, uint64_t now);
bool policy_is_quiet(const struct patience *patience, uint64_t now);
void policy_was_busy(struct patience *patience, uint64_t now);
void policy_was_idle(struct patience *patience);

#endif
