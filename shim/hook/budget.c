#include "budget.h"

#include <stdbool.h>

#include "account.h"

#define SAVED_NS 20000000ull        /* a tenant that rested may use so much of the GPU at once, of its share */
#define REFILL_NS 200000ull         /* not more often */
#define LONGEST_NS 3600000000000ull /* between two refills; so that nothing overflows */

static bool replace(uint64_t *place, uint64_t *seen, uint64_t value)
{
    return __atomic_compare_exchange_n(place, seen, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

void budget_charge(struct vgpu_account *account, struct span *span, uint64_t until)
{
    uint64_t from = span->charged_ns > span->started_ns ? span->charged_ns : span->started_ns;
    uint64_t covered = __atomic_load_n(&account->covered_until, __ATOMIC_SEQ_CST);

    if (!span->started_ns)
        return;
    do {
        if (until <= covered || until <= from)
            return;
        if (covered > from)
            from = covered;
    } while (!replace(&account->covered_until, &covered, until));
    __atomic_sub_fetch(&account->budget, (int64_t)(until - from), __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&account->used_ns, until - from, __ATOMIC_RELAXED);
    span->charged_from_ns = from;
    span->charged_ns = until;
}

/* Nothing is given back that others have come to rely on. */
void budget_settle(struct vgpu_account *account, struct span *span, uint64_t ended_ns, uint64_t now)
{
    budget_charge(account, span, ended_ns < now ? ended_ns : now);
    uint64_t claimed = span->charged_ns, end = ended_ns > span->charged_from_ns ? ended_ns : span->charged_from_ns;

    if (end < span->charged_ns && replace(&account->covered_until, &claimed, end)) {
        __atomic_add_fetch(&account->budget, (int64_t)(span->charged_ns - end), __ATOMIC_SEQ_CST);
        __atomic_sub_fetch(&account->used_ns, span->charged_ns - end, __ATOMIC_RELAXED);
    }
    *span = (struct span){0};
}

void budget_refill(struct vgpu_account *account, uint32_t share, uint64_t now)
{
    uint64_t last = __atomic_load_n(&account->budget_at, __ATOMIC_SEQ_CST);
    int64_t most = (int64_t)(SAVED_NS * share / 100000), budget, more;

    if (now < last + REFILL_NS || !replace(&account->budget_at, &last, now))
        return;
    uint64_t passed = now - last < LONGEST_NS ? now - last : LONGEST_NS;
    budget = __atomic_load_n(&account->budget, __ATOMIC_SEQ_CST);
    do {
        more = budget + (int64_t)(passed * share / 100000);
        if (more > most)
            more = most;
    } while (!__atomic_compare_exchange_n(&account->budget, &budget, more, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
}

int64_t budget_left(struct vgpu_account *account) { return __atomic_load_n(&account->budget, __ATOMIC_SEQ_CST); }
