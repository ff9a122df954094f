#include "policy.h"

#include "slice_page.h"

#define CARRY_NS 5000000ll           /* a tenant can be short of so much; more it did not want */
#define VISIT_LEAST_NS 1000000ull    /* less is not worth switching for */
#define VISIT_COST_NS 500000ull      /* what switching takes from the others, measured */
#define PATIENCE_LEAST_NS 1000000ull /* about what leaving and coming back costs */
#define PATIENCE_MOST_NS 16000000ull

int policy_plan(const struct share *shares, int count, uint64_t period_ns, struct turn *turns)
{
    uint64_t asked = 0, left;
    int burst = 0;

    for (int i = 0; i < count; i++) {
        asked += shares[i].millipercent;
        burst += shares[i].policy == VGPU_POLICY_BURST;
    }
    uint64_t whole = asked > POLICY_FULL ? asked : POLICY_FULL; /* over 100 percent in all: in proportion */
    left = asked < POLICY_FULL ? (POLICY_FULL - asked) * period_ns / POLICY_FULL : 0;
    for (int i = 0; i < count; i++) {
        turns[i] = (struct turn){shares[i].slot, period_ns * shares[i].millipercent / whole};
        if (shares[i].policy == VGPU_POLICY_BURST)
            turns[i].ns += left / (uint64_t)burst;
    }
    return count;
}

static int64_t carried(int64_t left)
{
    int64_t debt = -(int64_t)POLICY_PERIOD_NS;

    return left > CARRY_NS ? CARRY_NS : left < debt ? debt : left;
}

void policy_give_turn(struct allowance *allowance, uint64_t now, uint64_t turn_ns)
{
    allowance->left = carried(allowance->left) + (int64_t)turn_ns;
    allowance->given_ns = now;
}

uint64_t policy_give_visit(struct allowance *allowance, uint64_t now, uint64_t share_ns)
{
    if (now - allowance->given_ns >= POLICY_PERIOD_NS)
        policy_give_turn(allowance, now, share_ns);
    if (allowance->left < (int64_t)VISIT_LEAST_NS)
        return 0;
    return (uint64_t)allowance->left < POLICY_VISIT_NS ? (uint64_t)allowance->left : POLICY_VISIT_NS;
}

void policy_take(struct allowance *allowance, uint64_t ns) { allowance->left -= (int64_t)ns; }

void policy_charge_visit(struct allowance *allowance) { policy_take(allowance, VISIT_COST_NS); }

void policy_stir(struct patience *patience, uint64_t now)
{
    patience->quiet_since = now;
    if (!patience->needed_ns)
        patience->needed_ns = PATIENCE_LEAST_NS;
}

bool policy_is_quiet(const struct patience *patience, uint64_t now)
{
    return now - patience->quiet_since >= patience->needed_ns;
}

void policy_was_busy(struct patience *patience, uint64_t now)
{
    patience->quiet_since = now;
    patience->needed_ns = patience->needed_ns < PATIENCE_MOST_NS / 2 ? 2 * patience->needed_ns : PATIENCE_MOST_NS;
}

void policy_was_idle(struct patience *patience) { patience->needed_ns = PATIENCE_LEAST_NS; }
