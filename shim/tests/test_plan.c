/* Who gets how much of a period. */
#include "check.h"
#include "sched.h"
#include "slice_page.h"

#define PERIOD 100000000ull

static uint64_t plan(struct share *shares, int count, struct turn *turns)
{
    uint64_t sum = 0;
    CHECK(sched_plan(shares, count, PERIOD, turns) == count);
    for (int i = 0; i < count; i++)
        sum += turns[i].ns;
    CHECK(sum <= PERIOD);
    return sum;
}

void test_plan(void)
{
    struct turn turns[4];
    struct share hard = {1, 25000, VGPU_POLICY_HARD}, burst = {2, 25000, VGPU_POLICY_BURST};

    CHECK(plan(&hard, 1, turns) == PERIOD / 4); /* hard: no more, though nobody else is there */
    CHECK(plan(&burst, 1, turns) == PERIOD);    /* burst: all that is idle */

    struct share both[] = {hard, burst};
    CHECK(plan(both, 2, turns) == PERIOD);
    CHECK(turns[0].ns == PERIOD / 4 && turns[1].ns == PERIOD * 3 / 4);

    struct share too_many[] = {
        {1, 100000, VGPU_POLICY_HARD}, {2, 60000, VGPU_POLICY_BURST}, {3, 40000, VGPU_POLICY_HARD}};
    plan(too_many, 3, turns); /* 200 percent asked: each gets half of its own */
    CHECK(turns[0].ns == PERIOD / 2 && turns[1].ns == PERIOD * 3 / 10 && turns[2].ns == PERIOD / 5);
    CHECK(sched_plan(too_many, 0, PERIOD, turns) == 0);
}
