"""Who may use how much: config, groups, user, and the ceiling that nothing passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_vgpu_spawner.rules import (
    CHOSEN_LABEL,
    WHOLE_LABEL,
    Bounds,
    Chosen,
    Rule,
    as_whole,
    cuts,
    entitle,
    follow,
    is_whole,
    of_groups,
)

from jupyter_vgpu.quotas import Policy, Quota, QuotaError

GIB = 1 << 30
BOUNDS = Bounds(Quota(4 * GIB, 25), Quota(16 * GIB, 50, Policy.BURST), hours=10)
NOTHING = Rule()


def quotas() -> st.SearchStrategy[Quota]:
    return st.builds(Quota, st.integers(GIB, 80 * GIB), st.floats(1, 100), st.sampled_from(Policy))


def rules() -> st.SearchStrategy[Rule]:
    return st.builds(
        Rule,
        st.none() | st.just(0) | st.integers(GIB, 80 * GIB),
        st.none() | st.floats(1, 100),
        st.none() | st.sampled_from(Policy),
        st.none() | st.lists(st.sampled_from(["1GiB-25", "2GiB-50"]), min_size=1, unique=True).map(tuple),
        st.none() | st.floats(0, 100),
        st.none() | st.integers(0, 64),
    )


def test_the_default_holds_where_nobody_says_more() -> None:
    got = entitle(BOUNDS, NOTHING, NOTHING)
    assert (got.quota, got.slices, got.hours) == (Quota(4 * GIB, 25), None, 10)
    assert set(got.sources.values()) == {"default"}


def test_the_user_goes_before_the_group_field_by_field() -> None:
    got = entitle(BOUNDS, Rule(memory=8 * GIB, cores=40), Rule(memory=2 * GIB, hours=99))
    assert (got.quota, got.hours) == (Quota(2 * GIB, 40), 99)
    assert (got.sources["memory"], got.sources["cores"], got.sources["policy"]) == ("user", "group", "default")


def test_several_groups_give_the_most_that_one_of_them_gives() -> None:
    both = of_groups([Rule(memory=8 * GIB, slices=("a",)), Rule(cores=40, policy=Policy.BURST), Rule(memory=GIB)])
    assert both == Rule(8 * GIB, 40, Policy.BURST, ("a",))


@given(rules(), rules(), quotas(), quotas())
def test_nothing_passes_the_ceiling(group: Rule, user: Rule, default: Quota, ceiling: Quota) -> None:
    got = entitle(Bounds(default, ceiling), group, user).quota
    count = entitle(Bounds(default, ceiling, gpus=1, most_gpus=2, most_hours=20), group, user)
    assert count.hours is not None
    assert count.hours <= 20
    assert count.gpus <= 2
    assert (count.quota is None) >= (count.gpus == 0)
    if got:
        assert got.memory <= ceiling.memory
        assert got.cores <= ceiling.cores
        assert got.policy is Policy.HARD or ceiling.policy is Policy.BURST


def test_hours_have_a_ceiling_where_the_config_says_one() -> None:
    bounds = replace(BOUNDS, most_hours=50)
    got = [entitle(bounds, Rule(), Rule(hours=hours)) for hours in (None, 49, 51)]
    assert [(each.hours, each.sources["hours"]) for each in got] == [(10, "default"), (49, "user"), (50, "ceiling")]
    endless = entitle(replace(bounds, hours=None), Rule(), Rule())
    assert (endless.hours, endless.sources["hours"]) == (50, "ceiling")
    assert entitle(BOUNDS, Rule(), Rule(hours=999)).hours == 999


def test_what_of_a_rule_is_cut_is_told() -> None:
    bounds = replace(BOUNDS, ceiling=Quota(16 * GIB, 50), most_hours=50)
    rule = Rule(memory=20 * GIB, cores=40, policy=Policy.BURST, hours=60, gpus=9)
    assert sorted(cuts(rule, entitle(bounds, Rule(), rule))) == [
        "the config's ceiling makes gpus 1",
        "the config's ceiling makes hours 50",
        "the config's ceiling makes memory 16 GiB",
        "the config's ceiling makes policy hard",
    ]
    nobody = replace(BOUNDS, default=Quota(0, 25), ceiling=Quota(0, 25))
    assert cuts(Rule(memory=GIB), entitle(nobody, Rule(), Rule(memory=GIB))) == [
        "the config's ceiling makes memory 0, which is no GPU"
    ]
    # of what a group says nothing is told to who changes a user's
    assert cuts(Rule(cores=10), entitle(bounds, Rule(memory=20 * GIB), Rule(cores=10))) == []


def test_what_the_ceiling_cut_says_so() -> None:
    got = entitle(BOUNDS, NOTHING, Rule(memory=64 * GIB, cores=100, policy=Policy.BURST))
    assert got.quota == BOUNDS.ceiling
    assert (got.sources["memory"], got.sources["cores"], got.sources["policy"]) == ("ceiling", "ceiling", "user")


def test_no_memory_is_no_gpu_and_a_rule_may_give_or_take_one() -> None:
    nobody = Bounds(Quota(0, 25), BOUNDS.ceiling)
    assert entitle(nobody, NOTHING, NOTHING).quota is None
    assert entitle(nobody, Rule(memory=GIB), NOTHING).quota == Quota(GIB, 25)
    assert entitle(nobody, Rule(memory=GIB), Rule.parse({"memory": "none"})).quota is None


def test_how_many_servers_have_a_gpu_is_said_like_the_rest() -> None:
    bounds = Bounds(BOUNDS.default, BOUNDS.ceiling, gpus=1, most_gpus=3)
    assert entitle(bounds, NOTHING, NOTHING).gpus == 1
    assert entitle(bounds, of_groups([Rule(gpus=2), Rule(gpus=1)]), NOTHING).gpus == 2
    cut = entitle(bounds, Rule(gpus=2), Rule.parse({"gpus": "9"}))
    assert (cut.gpus, cut.sources["gpus"]) == (3, "ceiling")
    assert entitle(bounds, Rule(gpus=2), Rule(gpus=0)).quota is None


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (Quota(4 * GIB, 25), Quota(8 * GIB, 50)),  # it had all, and has all
        (Quota(GIB, 10), None),  # chosen smaller: it stays
        (Quota(4 * GIB, 10), Quota(8 * GIB, 10)),
    ],
)
def test_a_running_slice_grows_with_a_quota_that_it_filled(held: Quota, expected: Quota | None) -> None:
    before, after = entitle(BOUNDS, NOTHING, NOTHING), entitle(BOUNDS, NOTHING, Rule(memory=8 * GIB, cores=50))
    chosen = Chosen.of(held, before.quota)
    assert follow(held, chosen, after) == expected
    # down and up again, as an admin does who was mistaken
    cut = follow(held, chosen, entitle(BOUNDS, NOTHING, Rule(memory=GIB // 2, cores=5)))
    assert cut == Quota(GIB // 2, 5)
    assert follow(cut, chosen, before) == (None if cut == held else held)


@given(rules(), rules(), quotas())
def test_a_running_slice_is_never_above_its_users_new_quota(old: Rule, new: Rule, held: Quota) -> None:
    before, after = entitle(BOUNDS, NOTHING, old), entitle(BOUNDS, NOTHING, new)
    chosen = Chosen.of(held, before.quota)
    assert Chosen.told({CHOSEN_LABEL: chosen.as_label()}) == chosen
    followed = follow(held, chosen, after) or held
    if after.quota:
        assert followed.memory <= after.quota.memory
        assert followed.cores <= after.quota.cores
        assert followed.policy is after.quota.policy


@given(rules())
def test_a_rule_is_written_and_read_without_loss(rule: Rule) -> None:
    assert Rule.parse(rule.as_json()) == rule


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"memory": "lots"}, "is not a size"),
        ({"cores": 0}, "is not a percentage"),
        ({"policy": "nice"}, "give 'hard' or 'burst'"),
        ({"hours": -1}, "give one from 0 to"),
        ({"hours": 10**400}, "give one from 0 to"),
        ({"hours": "nan"}, "give one from 0 to"),
        ({"slices": 7}, "give keys"),
        ({"slices": []}, "leave it out for all slices"),
        ({"gpus": -1}, "give one from 0 to 64"),
        ({"gpus": 65}, "give one from 0 to 64"),
        ({"gpus": "many"}, "'many' is no number of servers with a GPU at once"),
        ({"gpus": True}, "is no number of servers"),
        ({"gpus": 1.5}, "is no number of servers"),
        ({"memroy": "4G"}, "give some of memory, cores, policy, gpus, slices, hours"),
    ],
)
def test_nonsense_is_refused_in_words(values: dict[str, object], words: str) -> None:
    with pytest.raises(QuotaError, match=words):
        Rule.parse(values)


def test_a_running_slice_under_mps_follows_in_memory_alone() -> None:
    held = Quota(4 * GIB, 25, model="MPS")
    before, after = entitle(BOUNDS, NOTHING, NOTHING), entitle(BOUNDS, NOTHING, Rule(memory=2 * GIB, cores=10))
    chosen = Chosen.of(held, before.quota)
    assert follow(held, chosen, after) == Quota(2 * GIB, 25, model="MPS")
    assert follow(held, chosen, entitle(BOUNDS, NOTHING, Rule(cores=10, policy=Policy.BURST))) is None


@pytest.mark.parametrize("whole", [None, Quota(4 << 30, 33.333333333), Quota(1 << 30, 25, Policy.BURST)])
def test_a_slice_says_what_might_be_had(whole: Quota | None) -> None:
    labels = {WHOLE_LABEL: as_whole(whole)}
    assert is_whole(labels, whole) is True
    assert is_whole(labels, Quota(2 << 30, 25)) is False
    assert is_whole({}, whole) is None
    assert is_whole({WHOLE_LABEL: "{"}, whole) is None
