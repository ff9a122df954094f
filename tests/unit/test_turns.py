"""Whose turn it is, and what is foretold."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_vgpu_spawner.turns import (
    MIN_LIFETIMES,
    Line,
    Running,
    Space,
    Waiting,
    foretell,
    in_order,
    is_possible,
    loads,
    room_for,
    seat,
    without,
)

from jupyter_vgpu.quotas import Quota, goes_alone

GIB = 1 << 30
HOUR = 3600.0


def gpu(free: int = 16, cores: float = 100, total: int = 16, name: str = "") -> Space:
    used = free < total or cores < 100
    return Space(total * GIB, free * GIB, 100, cores, names=(name,), slices=int(used))


def wants(user: str, memory: int, cores: float = 10, since: float = 0) -> Waiting:
    return Waiting(user, "", Quota(memory * GIB, cores), since)


models = st.sampled_from(["H100", "A100", "MIG"])
quotas = st.builds(
    lambda memory, cores, model, exclusive: Quota(memory * GIB, cores, model=model, exclusive=exclusive),
    *(st.integers(1, 24), st.integers(1, 100), st.just("") | models, st.booleans()),
)
spaces = st.lists(
    st.builds(lambda free, cores, name: gpu(free, cores, name=name), st.integers(0, 16), st.integers(0, 100), models),
    min_size=1,
    max_size=5,
)
lines = st.lists(quotas, max_size=12).map(
    lambda found: [Waiting(f"u{number}", "", quota, number) for number, quota in enumerate(found)]
)


@given(lines, spaces)
def test_nothing_is_promised_twice(line: list[Waiting], free: list[Space]) -> None:
    seated, _ = seat(line, free)
    for at, space in enumerate(free):
        here = [each.quota for each, place in seated if place == at]
        assert sum(quota.memory for quota in here) <= space.memory_free
        assert sum(quota.cores for quota in here) <= space.cores_free + 1e-6
        assert not any(goes_alone(quota, space.names) for quota in here) or space.slices + len(here) == 1
        assert all(quota.model in ("", *space.names) for quota in here)
    assert len({each for each, _ in seated}) == len(seated)


@given(lines, spaces)
def test_the_first_that_is_possible_never_waits_for_a_later_one(line: list[Waiting], free: list[Space]) -> None:
    possible = [each for each in line if is_possible(each.quota, free)]
    if possible and any(space.fits(possible[0].quota) for space in free):
        assert possible[0] in {each for each, _ in seat(line, free)[0]}


@given(lines, spaces, st.randoms(use_true_random=False))
def test_everybody_whose_slice_a_gpu_can_hold_has_a_turn(
    line: list[Waiting], free: list[Space], chance: random.Random
) -> None:
    """Slices end in any order, newcomers with small wishes come all the time, and nobody is passed over for ever."""
    running = [
        (at, Quota(space.memory_total - space.memory_free, 100 - space.cores_free))
        for at, space in enumerate(free)
        if space.slices
    ]
    waiting, spaces_now = list(line), list(free)
    for step in range(400):
        for each, at in seat(waiting, spaces_now)[0]:
            waiting.remove(each)
            spaces_now[at] = spaces_now[at].less(each.quota)
            running.append((at, each.quota))
        waiting.append(Waiting(f"new{step}", "", Quota(GIB, 1), 1000 + step))
        if running:
            at, quota = running.pop(chance.randrange(len(running)))
            spaces_now[at] = spaces_now[at].more(quota)
    assert [each for each in waiting if each in line and is_possible(each.quota, free)] == []


def test_a_large_wish_is_not_overtaken_on_its_gpu_but_others_go_on() -> None:
    large = wants("large", 16)
    seated, left = seat([large, wants("small", 1)], [gpu(15), gpu(2)])
    assert [(each.user, at) for each, at in seated] == [("small", 1)]
    assert left[0].memory_free == 0
    assert room_for(Quota(2 * GIB, 10), [large], [gpu(15)]) is None
    assert room_for(Quota(2 * GIB, 10), [large], [gpu(15), gpu(3)]) == gpu(3)
    assert room_for(Quota(2 * GIB, 10), [], [gpu(15)]) == gpu(15)


def test_from_the_queue_a_slice_goes_where_least_is_left_so_that_whole_gpus_stay() -> None:
    here = [gpu(free=16), gpu(free=9, cores=40), gpu(free=5, cores=90)]
    seated, left = seat([wants("alice", 4), wants("bob", 4, since=1), wants("eve", 16, 100, since=2)], here)
    assert [(each.user, at) for each, at in seated] == [("alice", 1), ("bob", 1), ("eve", 0)]
    assert room_for(Quota(GIB, 10), [], left) == left[1]


def test_a_gpu_that_is_to_be_somebodys_alone_is_kept_until_it_is_empty() -> None:
    alone = Waiting("alone", "", Quota(GIB, 10, exclusive=True), 0)
    assert room_for(Quota(GIB, 10), [alone], [gpu(15)]) is None
    (seated,), (left,) = seat([alone], [gpu()])
    assert (seated[0], left.taken) == (alone, True)
    assert room_for(Quota(GIB, 10), [], [left]) is None
    assert left.more(alone.quota) == gpu()


def test_a_slice_counts_for_the_part_or_the_gpu_that_it_takes() -> None:
    parts = [replace(gpu(2, 14, 2, "MIG"), cores_total=14, slices=0) for _ in range(7)]
    large = replace(gpu(8, 42, 8, "MIG"), cores_total=42, slices=0)
    held = [
        ("ann", Quota(GIB, 100, exclusive=True)),
        ("bob", Quota(GIB, 1, model="MIG")),
        ("eve", Quota(4 * GIB, 1, model="MIG")),
    ]
    found = loads(held, {"ann": (), "bob": (), "eve": ()}, {}, [gpu(name="H100"), large, *parts])
    assert found == {
        "ann": pytest.approx(16 / 38),
        "bob": pytest.approx(14 / 240),
        "eve": pytest.approx(8 / 38),
    }


def test_what_is_promised_to_others_is_told_to_the_daemon_that_does_not_know_of_it() -> None:
    promised = Quota(GIB, 100, exclusive=True)
    left = without([replace(gpu(), uuid="a"), replace(gpu(8), uuid="b")], [("a", promised)])
    line = Line(left, kept=True)
    assert not line.must_wait(Quota(GIB, 10))
    assert line.where(Quota(GIB, 10)) == "b"
    assert line.must_wait(promised)
    assert Line(left).where(Quota(GIB, 10)) is None


def test_who_takes_a_whole_gpu_takes_the_smallest_and_counts_for_it() -> None:
    alone = Waiting("ann", "", Quota(GIB, 10, exclusive=True), 0)
    line = [gpu(80, total=80), gpu(16)]
    assert seat([alone], line)[0] == [(alone, 1)]
    assert room_for(alone.quota, [], line) == line[1]
    promised_often = [Space(16 * GIB, 16 * GIB, 400, 400)] * 2
    assert loads([("ann", alone.quota)], {"ann": []}, {}, promised_often) == {"ann": 0.5}


def test_what_asks_for_a_model_keeps_no_other_from_others() -> None:
    wish = Waiting("ann", "", Quota(16 * GIB, 10, model="H100"), 0)
    line = [gpu(15, name="NVIDIA H100"), gpu(15, name="NVIDIA A100")]
    assert room_for(Quota(GIB, 10), [wish], line) == line[1]
    assert not is_possible(Quota(GIB, 10, model="B200"), line)


def test_what_no_gpu_can_hold_keeps_nothing_from_others() -> None:
    assert room_for(Quota(GIB, 10), [wants("huge", 64)], [gpu(15)]) == gpu(15)


def test_who_holds_little_goes_first_and_who_waited_long() -> None:
    groups = {"ann": ["physics"], "bob": ["physics", "chemistry"], "eve": [], "joe": []}
    held = [("ann", Quota(8 * GIB, 10)), ("joe", Quota(GIB, 25))]
    found = loads(held, groups, {"physics": 2}, [gpu()])
    assert found == {"ann": 0.25, "bob": 0, "eve": 0, "joe": 0.25}  # the larger part counts, by the share
    now = HOUR
    line = [wants("ann", 1, since=now - 60), wants("bob", 1, since=now)]
    assert [each.user for each in in_order(line, found, now)] == ["bob", "ann"]
    line = [wants("ann", 1, since=now - 0.3 * HOUR), wants("bob", 1, since=now)]
    assert [each.user for each in in_order(line, found, now)] == ["ann", "bob"]


def test_nothing_is_foretold_from_nothing() -> None:
    assert foretell([wants("ann", 1)], [gpu(0)], [Running(0, Quota(GIB, 10), 0)], [60.0] * (MIN_LIFETIMES - 1)) == {}


def test_servers_that_all_live_an_hour_tell_when_the_turn_comes() -> None:
    full = [Running(0, Quota(8 * GIB, 50), 3000), Running(0, Quota(8 * GIB, 50), 600)]
    line = [wants("ann", 8), wants("bob", 8), wants("huge", 64)]
    found = foretell(line, [gpu(0, 0)], full, [HOUR] * 20)
    assert [(found[each].middle, found[each].late) for each in line] == [(600, 600), (3000, 3000), (None, None)]


@pytest.mark.parametrize("waiting", [1, 4])
def test_what_is_foretold_is_true(waiting: int) -> None:
    """Of many waits as they then came half are shorter than the middle, and nine in ten than the late one."""
    chance = random.Random(7)
    history = [chance.expovariate(1 / HOUR) for _ in range(300)]
    sooner = later = count = 0
    for _ in range(60):
        ages = [chance.expovariate(1 / HOUR) for _ in range(4)]
        running = [Running(0, Quota(4 * GIB, 25), age) for age in ages]
        line = [wants(f"u{number}", 4, 25) for number in range(waiting)]
        said = foretell(line, [gpu(0, 0)], running, history)[line[-1]]
        assert said.middle is not None
        assert said.late is not None
        # lives without memory: the rest of each is a life again, and so the k-th end of all decides
        ends, now = [chance.expovariate(1 / HOUR) for _ in ages], 0.0
        for _ in range(waiting):
            now = min(ends)
            ends.remove(now)
            ends.append(now + chance.expovariate(1 / HOUR))
        sooner, later, count = sooner + (now <= said.middle), later + (now <= said.late), count + 1
    assert sooner / count == pytest.approx(0.5, abs=0.2)
    assert later / count == pytest.approx(0.9, abs=0.12)
    assert statistics.mean(history) == pytest.approx(HOUR, rel=0.2)
