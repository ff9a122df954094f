/* Time on the GPU, paid by several streams and processes together. */
#include "account.h"
#include "budget.h"
#include "check.h"

#define MS 1000000ll

static struct vgpu_account account;

static void fill(int64_t budget) { account = (struct vgpu_account){.budget = budget, .budget_at = 1}; }

static void what_runs_side_by_side_is_paid_once(void)
{
    struct span one = {.started_ns = 100 * MS}, other = {.started_ns = 102 * MS};

    fill(100 * MS);
    budget_charge(&account, &one, 110 * MS);
    budget_charge(&account, &other, 112 * MS); /* two of its ten are new */
    CHECK(account.budget == 88 * MS && account.used_ns == 12 * MS);
    budget_charge(&account, &one, 111 * MS);
    CHECK(account.budget == 88 * MS && account.used_ns == 12 * MS);
}

static void what_ended_earlier_than_was_seen_is_given_back(void)
{
    struct span span = {.started_ns = 100 * MS};

    fill(0);
    budget_charge(&account, &span, 104 * MS);
    budget_settle(&account, &span, 103 * MS, 105 * MS);
    CHECK(account.budget == -3 * MS && account.covered_until == (uint64_t)(103 * MS));
    span = (struct span){.started_ns = 110 * MS};
    budget_settle(&account, &span, 112 * MS, 115 * MS); /* never looked at while it ran */
    CHECK(account.budget == -5 * MS && account.used_ns == 5 * MS && !span.started_ns);
    budget_charge(&account, &span, 200 * MS); /* nothing runs */
    CHECK(account.budget == -5 * MS);
}

static void what_another_has_paid_since_is_not_given_back(void)
{
    struct span one = {.started_ns = 100 * MS}, other = {.started_ns = 100 * MS};

    fill(0);
    budget_charge(&account, &one, 104 * MS);
    budget_charge(&account, &other, 106 * MS);
    budget_settle(&account, &one, 102 * MS, 107 * MS);
    CHECK(account.budget == -6 * MS);
}

static void time_fills_it_and_long_debts_are_worked_off(void)
{
    fill(0);
    budget_refill(&account, 25000, 10 * MS + 1);
    CHECK(account.budget == 10 * MS / 4);
    budget_refill(&account, 25000, 10 * MS + 2); /* too soon */
    CHECK(account.budget == 10 * MS / 4 && budget_left(&account) > 0);
    budget_refill(&account, 25000, 60000 * MS); /* little is saved */
    CHECK(account.budget == 20 * MS / 4);
    account.budget = -100000 * MS;
    budget_refill(&account, 50000, 260000 * MS);
    CHECK(account.budget == 0 && budget_left(&account) <= 0);
}

void test_budget(void)
{
    what_runs_side_by_side_is_paid_once();
    what_ended_earlier_than_was_seen_is_given_back();
    what_another_has_paid_since_is_not_given_back();
    time_fills_it_and_long_debts_are_worked_off();
}
