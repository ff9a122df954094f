#include "policy.h"

#include "slice_page.h"

#define CARRY_NS 5000000ll           /* a tenant can be short of so much; more it did not want */
#define VISIT_LEAST_NS 1000000ull    /* less is not worth switching for */
#define PATIENCE_LEAST_NS 1000000ull /* about what leaving and coming back costs */
#define PATIENCE_MOST_NS 16000000ull

uint64_t policy_share_ns(uint32_t millipercent, uint64_t promised, uint64_t period_ns)
{
    return period_ns * millipercent / (promised > POLICY_FULL ? promised : POLICY_FULL);
}

void policy_plan(const struct share *shares, int count, uint64_t period_ns, uint64_t visited_ns, struct turn *turns)
{
    uint64_t asked = 0, given = visited_ns;
    int burst = 0;

    for (int i = 0; i < count; i++) {
        asked += shares[i].millipercent;
        burst += shares[i].policy == VGPU_POLICY_BURST;
    }
    for (int i = 0; i < count; i++) { /* over 100 percent in all: in proportion */
        turns[i] = (struct turn){shares[i].slot, policy_share_ns(shares[i].millipercent, asked, period_ns)};
        given += turns[i].ns;
    }
    for (int i = 0; i < count && given < period_ns; i++)
        if (shares[i].policy == VGPU_POLICY_BURST)
            turns[i].ns += (period_ns - given) / (uint64_t)burst;
}

static int64_t carried(int64_t left)
{
    int64_t debt = -(int64_t)POLICY_PERIOD_NS;

    return left > CARRY_NS ? CARRY_NS : left < debt ? debt : left;
}

void policy_give_turn(struct allowance *allowance, uint64_t now, uint64_t turn_ns)
{
    /* a period that follows a late one began before now, perhaps before a visit */
    uint64_t since = now > allowance->given_ns ? now - allowance->given_ns : 0;

    if (since >= POLICY_PERIOD_NS * 9 / 10) { /* periods are not exact */
        allowance->left = carried(allowance->left) + (int64_t)turn_ns;
    } else {
        allowance->left += (int64_t)(turn_ns * since / POLICY_PERIOD_NS);
        if (allowance->left > (int64_t)turn_ns)
            allowance->left = (int64_t)turn_ns;
    }
    allowance->given_ns += since;
}

void policy_give_more(struct allowance *allowance, uint64_t ns) { allowance->left += (int64_t)ns; }

uint64_t policy_give_visit(struct allowance *allowance, uint64_t now, uint64_t share_ns)
{
    if (now - allowance->given_ns >= POLICY_PERIOD_NS)
        policy_give_turn(allowance, now, share_ns);
    if (allowance->left < (int64_t)VISIT_LEAST_NS)
        return 0;
    return (uint64_t)allowance->left < POLICY_VISIT_NS ? (uint64_t)allowance->left : POLICY_VISIT_NS;
}

void policy_take(struct allowance *allowance, uint64_t ns) { allowance->left -= (int64_t)ns; }

void policy_forget(struct patience *patience) { *patience = (struct patience){0}; }

void policy_stir(struct patience *patience, uint64_t now)
{
    patience->quiet_since = now;
    if (!patience->needed_ns)
        patience->needed_ns = PATIENCE_LEAST_NS;
}

void policy_leave(struct patience *patience, uint64_t now) { patience->quiet_ns = now - patience->quiet_since; }

void policy_come_back(struct patience *patience, uint64_t now) { policy_stir(patience, now - patience->quiet_ns); }

bool policy_is_quiet(const struct patience *patience, uint64_t now)
{
    return now - patience->quiet_since >= patience->needed_ns;
}

void policy_was_busy(struct patience *patience, uint64_t now)
{
    patience->quiet_since = now;
    patience->needed_ns = patience->needed_ns < PATIENCE_MOST_NS / 2 ? 2 * patience->needed_ns : PATIENCE_MOST_NS;
}
