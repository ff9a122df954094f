/* Who gets how much of a period, who may interrupt, and who is taken for idle. */
#include "check.h"
#include "policy.h"
#include "slice_page.h"

#define PERIOD 100000000ull

static uint64_t plan(const struct share *shares, int count, uint64_t visited, struct turn *turns)
{
    uint64_t sum = 0;
    policy_plan(shares, count, PERIOD, visited, turns);
    for (int i = 0; i < count; i++)
        sum += turns[i].ns;
    CHECK(sum <= PERIOD);
    return sum;
}

static void a_period_is_divided_by_share_and_policy(void)
{
    struct turn turns[4];
    struct share hard = {1, 25000, VGPU_POLICY_HARD}, burst = {2, 25000, VGPU_POLICY_BURST};

    CHECK(plan(&hard, 1, 0, turns) == PERIOD / 4); /* hard: no more, though nobody else is there */
    CHECK(plan(&burst, 1, 0, turns) == PERIOD);    /* burst: all that is idle */

    struct share both[] = {hard, burst};
    CHECK(plan(both, 2, 0, turns) == PERIOD);
    CHECK(turns[0].ns == PERIOD / 4 && turns[1].ns == PERIOD * 3 / 4);
    /* what sleepers took by visits comes out of what is idle, and out of nobody's own */
    CHECK(plan(both, 2, PERIOD / 10, turns) == PERIOD * 9 / 10 && turns[0].ns == PERIOD / 4);
    CHECK(plan(both, 2, PERIOD, turns) == PERIOD / 2 && turns[1].ns == PERIOD / 4);

    struct share too_many[] = {
        {1, 100000, VGPU_POLICY_HARD}, {2, 60000, VGPU_POLICY_BURST}, {3, 40000, VGPU_POLICY_HARD}};
    plan(too_many, 3, 0, turns); /* 200 percent asked: each gets half of its own */
    CHECK(turns[0].ns == PERIOD / 2 && turns[1].ns == PERIOD * 3 / 10 && turns[2].ns == PERIOD / 5);
    CHECK(policy_share_ns(100000, 400000, PERIOD) == PERIOD / 4);
    CHECK(policy_share_ns(25000, 50000, PERIOD) == PERIOD / 4);
}

#define MS 1000000ull

static void what_a_turn_was_off_by_is_settled_and_idleness_is_not_saved(void)
{
    struct allowance a = {0};

    policy_give_turn(&a, PERIOD, 25 * MS);
    policy_take(&a, 27 * MS);
    policy_give_turn(&a, 2 * PERIOD, 25 * MS);
    CHECK(a.left == (int64_t)(23 * MS));
    policy_take(&a, MS); /* it fell asleep after 1 ms: of the other 22 it has 5 left */
    policy_give_turn(&a, 3 * PERIOD, 25 * MS);
    CHECK(a.left == (int64_t)(30 * MS));
    policy_take(&a, 900 * MS); /* nor does a debt last for ever */
    policy_give_turn(&a, 4 * PERIOD, 25 * MS);
    CHECK(a.left == -(int64_t)(75 * MS));
    policy_give_more(&a, 80 * MS);
    CHECK(a.left == (int64_t)(5 * MS));
}

static void visits_end_with_the_share(void)
{
    struct allowance a = {0};
    uint64_t now = 10 * PERIOD, used = 0;
    int visits = 0;

    for (uint64_t length; visits < 100 && (length = policy_give_visit(&a, now, 10 * MS)); visits++) {
        CHECK(length <= POLICY_VISIT_NS);
        policy_take(&a, 2 * MS);
        used += 2 * MS;
    }
    CHECK(visits == 5 && used == 10 * MS);
    CHECK(policy_give_visit(&a, now + PERIOD - 1, 10 * MS) == 0);
    CHECK(policy_give_visit(&a, now + PERIOD, 10 * MS) == POLICY_VISIT_NS);
}

/* To sleep through the gap and to come back just before the period begins doubles nothing. */
static void a_turn_after_a_visit_is_no_second_share(void)
{
    struct allowance a = {0};
    uint64_t now = 10 * PERIOD, used = 0;

    for (int round = 0; round < 10; round++, now += 108 * MS) {
        policy_give_visit(&a, now, 10 * MS);
        policy_take(&a, 5 * MS);
        used += 5 * MS;
        policy_give_turn(&a, now + 6 * MS, 10 * MS);
        if (a.left > 0) {
            used += (uint64_t)a.left;
            policy_take(&a, (uint64_t)a.left);
        }
    }
    policy_give_turn(&a, now - 103 * MS, 10 * MS); /* of a period that began before the last visit */
    CHECK(a.left <= 0);
    CHECK(used <= 10 * 108 * MS / 10 * 11 / 10); /* a tenth, and a tenth of that for what periods are off by */
}

static void patience_grows_where_it_was_wrong(void)
{
    struct patience p = {0};
    uint64_t now = PERIOD;

    policy_stir(&p, now);
    CHECK(!policy_is_quiet(&p, now) && policy_is_quiet(&p, now + MS));
    for (int i = 0; i < 20; i++)
        policy_was_busy(&p, now);
    CHECK(!policy_is_quiet(&p, now + 15 * MS) && policy_is_quiet(&p, now + 16 * MS));
    /* quiet in turns of 5 ms each is quiet all the same */
    for (int i = 0; i < 3; i++) {
        CHECK(!policy_is_quiet(&p, now + 5 * MS));
        policy_leave(&p, now + 5 * MS);
        now += PERIOD;
        policy_come_back(&p, now);
    }
    CHECK(policy_is_quiet(&p, now + 5 * MS));
    policy_forget(&p);
    policy_come_back(&p, now);
    CHECK(!policy_is_quiet(&p, now) && policy_is_quiet(&p, now + MS));
}

void test_policy(void)
{
    a_period_is_divided_by_share_and_policy();
    what_a_turn_was_off_by_is_settled_and_idleness_is_not_saved();
    visits_end_with_the_share();
    a_turn_after_a_visit_is_no_second_share();
    patience_grows_where_it_was_wrong();
}
