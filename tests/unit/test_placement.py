"""Which GPU a slice goes to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_vgpu.node.placement import NoRoom, Room, Strategy, place
from jupyter_vgpu.quotas import Quota

GIB = 1 << 30


def room(index: int, reserved: int = 0, cores: float = 0, total: int = 16 * GIB) -> Room:
    return Room(f"GPU-{index}", index, total, reserved, 100, cores)


def test_the_gpu_with_most_free_memory_and_the_lowest_index_wins() -> None:
    rooms = [room(0, 4 * GIB), room(1), room(2)]
    assert place(Quota(GIB, 10), rooms).index == 1


def test_a_gpu_without_compute_left_is_passed_over() -> None:
    assert place(Quota(GIB, 50), [room(0, 0, 60), room(1, 8 * GIB, 50)]).index == 1


def test_only_the_wanted_gpu_will_do() -> None:
    assert place(Quota(GIB, 50), [room(0), room(1, 8 * GIB)], "GPU-1").index == 1
    with pytest.raises(NoRoom, match="has no GPU GPU-9; it has: 0 \\(GPU-0\\)"):
        place(Quota(GIB, 50), [room(0)], "GPU-9")


def test_a_full_node_says_what_would_fit() -> None:
    with pytest.raises(NoRoom, match=r"no GPU has 8 GiB .* Largest free slice: 4 GiB and 40 % of compute on GPU 0"):
        place(Quota(8 * GIB, 10), [room(0, 12 * GIB, 60)])


def test_a_slice_that_no_gpu_could_ever_hold_is_told_so() -> None:
    with pytest.raises(NoRoom, match="no GPU here is large enough for 32 GiB, 10 % hard: the largest has 16 GiB"):
        place(Quota(32 * GIB, 10), [room(0)])


def test_binpack_keeps_whole_gpus_free() -> None:
    rooms = [room(0), room(1, 4 * GIB, 25), room(2)]
    assert place(Quota(4 * GIB, 25), rooms, strategy=Strategy.BINPACK, held=[Quota(16 * GIB, 100)]).index == 1
    assert place(Quota(4 * GIB, 25), rooms).index == 0  # spread


def test_binpack_leaves_no_memory_that_has_no_compute_left() -> None:
    full = [room(i, 16 * GIB, 100) for i in range(6)]
    others = [Quota(2 * GIB, 25)] * 9
    # on the first with room all compute would be gone, and 12 GiB of memory nobody's
    rooms = [*full, room(6, 2 * GIB, 50), room(7, 12 * GIB, 50)]
    assert place(Quota(2 * GIB, 50), rooms, strategy=Strategy.BINPACK, held=others).index == 7


GPUS = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 100)), min_size=1, max_size=8)
QUOTAS = st.builds(lambda gib, cores: Quota(gib * GIB, cores), st.integers(1, 16), st.integers(1, 100))


@given(GPUS, QUOTAS, st.sampled_from(Strategy), st.lists(QUOTAS, max_size=5))
def test_what_is_placed_fits_and_what_fits_is_placed(
    taken: list[tuple[int, int]], quota: Quota, strategy: Strategy, held: list[Quota]
) -> None:
    rooms = [room(i, gib * GIB, used) for i, (gib, used) in enumerate(taken)]
    try:
        chosen = place(quota, rooms, strategy=strategy, held=held)
    except NoRoom:
        assert not any(r.fits(quota) for r in rooms)
    else:
        assert chosen.fits(quota)
        assert place(quota, rooms, strategy=strategy, held=held) == chosen


@given(GPUS, st.lists(QUOTAS, min_size=1, max_size=20), st.sampled_from(Strategy))
def test_no_gpu_is_ever_promised_beyond_what_it_has(
    taken: list[tuple[int, int]], quotas: list[Quota], strategy: Strategy
) -> None:
    rooms = {i: room(i, gib * GIB, used) for i, (gib, used) in enumerate(taken)}
    for quota in quotas:
        try:
            chosen = place(quota, list(rooms.values()), strategy=strategy, held=quotas)
        except NoRoom:
            continue
        memory, cores = chosen.memory_reserved + quota.memory, chosen.cores_reserved + quota.cores
        rooms[chosen.index] = room(chosen.index, memory, cores)
        assert memory <= chosen.memory_total
        assert cores <= chosen.cores_total


KINDS = {"whole": ("H100",), "named": ("L40S", "teaching"), "mps": ("H100", "MPS"), "part": ("H100 MIG 1g.10gb", "MIG")}
WISHES = st.builds(
    Quota,
    st.integers(1, 16).map(lambda gib: gib * GIB),
    st.integers(1, 100),
    model=st.sampled_from(["", "", "H100", "teaching", "MPS", "MIG", "1g.10gb", "B200"]),
    exclusive=st.booleans(),
)
LIVES = st.lists(st.one_of(WISHES, st.integers(0, 30)), max_size=40)


@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6), LIVES, st.sampled_from(Strategy))
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_whatever_comes_and_goes_each_gpu_holds_what_it_may(
    factor: float, kinds: list[str], life: list[Quota | int], strategy: Strategy
) -> None:
    """A number takes a slice away. What is right is said here anew, without a word of the placement's own."""
    there: list[list[Quota]] = [[] for _ in kinds]
    for step in life:
        if isinstance(step, int):
            held = [(at, quota) for at, here in enumerate(there) for quota in here]
            if held:
                at, quota = held[step % len(held)]
                there[at].remove(quota)
            continue
        rooms = [
            replace(
                room(at, sum(q.memory for q in here), sum(q.cores for q in here)),
                memory_total=int(16 * GIB * (1 if kind == "part" else factor)),
                cores_total=100 * (1 if kind == "part" else factor),
                names=KINDS[kind],
                slices=len(here),
                taken=any(quota.exclusive for quota in here) or (kind == "part" and bool(here)),
            )
            for at, (kind, here) in enumerate(zip(kinds, there, strict=True))
        ]
        try:
            at = place(step, rooms, strategy=strategy, held=[quota for here in there for quota in here]).index
        except NoRoom:
            continue
        there[at].append(step)
        here, kind = there[at], kinds[at]
        most = 1 if kind == "part" else factor
        assert sum(quota.memory for quota in here) <= 16 * GIB * most
        assert sum(quota.cores for quota in here) <= 100 * most
        assert len(here) == 1 or not any(quota.exclusive for quota in here)
        assert len(here) == 1 or kind != "part"
        assert (kind == "mps") == (step.model == "MPS")
        assert (kind == "part") == (step.model in ("MIG", "1g.10gb"))
        assert kind == "named" or step.model != "teaching"
        assert step.model != "B200"


def test_room_is_never_negative_where_more_was_promised_than_there_is() -> None:
    over = room(0, 20 * GIB, 120)
    assert (over.memory_free, over.cores_free) == (0, 0.0)


def test_a_model_or_a_label_is_asked_for_by_a_part_of_its_name() -> None:
    rooms = [replace(room(0), names=("NVIDIA A100-SXM4-80GB",)), replace(room(1), names=("NVIDIA H100", "teaching"))]
    assert place(Quota(GIB, 10, model="h100"), rooms).index == 1
    assert place(Quota(GIB, 10, model="Teaching"), rooms).index == 1
    assert place(Quota(GIB, 10, model="a100"), rooms).index == 0
    with pytest.raises(NoRoom, match="no GPU called 'B200'; it has: NVIDIA A100-SXM4-80GB, NVIDIA H100, teaching"):
        place(Quota(GIB, 10, model="B200"), rooms)


def test_who_wants_to_be_alone_gets_an_empty_gpu_and_keeps_it() -> None:
    alone = Quota(GIB, 10, exclusive=True)
    rooms = [replace(room(0, GIB, 10), slices=1), room(1)]
    assert place(alone, rooms).index == 1
    taken = replace(room(1, GIB, 10), slices=1, taken=True)
    assert (taken.memory_free, taken.cores_free) == (0, 0)
    assert place(Quota(GIB, 10), [rooms[0], taken]).index == 0
    with pytest.raises(NoRoom, match="no GPU that is large enough is without slices now"):
        place(alone, [rooms[0], taken])
    with pytest.raises(NoRoom, match="no GPU that is large enough is without slices now"):
        place(replace(alone, memory=12 * GIB), [rooms[0], room(1, total=8 * GIB)])
    assert place(alone, [room(0, total=80 * GIB), room(1)]).index == 1  # the smallest, for it takes all of it
    with pytest.raises(NoRoom, match="no GPU has 1 GiB"):
        place(Quota(GIB, 10), [taken])


@given(GPUS, st.booleans())
def test_a_gpu_of_mps_is_for_who_asks_for_it_and_for_nobody_else(reserved: list[tuple[int, int]], asks: bool) -> None:
    rooms = [
        replace(room(i, memory * GIB, cores), names=("H100", "MPS") if i % 2 else ("H100", "teaching"))
        for i, (memory, cores) in enumerate(reserved)
    ]
    for strategy in Strategy:
        try:
            placed = place(Quota(GIB, 10, model="mps" if asks else ""), rooms, strategy=strategy)
        except NoRoom:
            continue
        assert ("MPS" in placed.names) == asks
    with pytest.raises(NoRoom, match="all GPUs of this node are for slices that ask for them: give the model 'MPS'"):
        place(Quota(GIB, 10), [replace(room(0), names=("H100", "MPS"))])
    with pytest.raises(NoRoom, match="no GPU called 'H100'"):
        place(Quota(GIB, 10, model="H100"), [replace(room(0), names=("H100", "MPS"))])


def test_mig_is_a_word_of_parts_alone() -> None:
    with pytest.raises(NoRoom, match="no GPU called 'MIG'"):
        place(Quota(GIB, 10, model="MIG"), [replace(room(0), names=("H100", "no MIG here"))])
    assert place(Quota(GIB, 10, model="cs"), [replace(room(0), names=("H100", "dept.cs"))]).index == 0


def part(index: int, total: int = 10 * GIB, name: str = "1g.10gb", slices: int = 0) -> Room:
    return Room(
        f"MIG-{index}", index, total, 0, 14, 0, (f"NVIDIA H100 80GB HBM3 MIG {name}", "MIG"), slices, slices > 0
    )


def test_a_part_of_a_gpu_is_for_one_slice_that_asks_for_it() -> None:
    rooms = [room(0), part(1, 20 * GIB, "2g.20gb"), part(2), part(3), part(4, name="1c.1g.10gb")]
    assert place(Quota(GIB, 1), rooms).index == 0
    for model in ("MIG", "mig", "1g.10gb", "MIG 1g.10gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert place(Quota(GIB, 14, model=model), rooms).index == 2, model  # the smallest will do
    assert place(Quota(12 * GIB, 14, model="MIG"), rooms).index == 1
    assert place(Quota(GIB, 14, model="1c.1g.10gb"), rooms).index == 4
    with pytest.raises(NoRoom, match="no GPU called 'H100'"):
        place(Quota(GIB, 1, model="H100"), rooms[1:])
    with pytest.raises(NoRoom, match="all GPUs of this node are for slices that ask for them: give the model 'MIG'"):
        place(Quota(GIB, 1), rooms[1:])
    with pytest.raises(NoRoom, match="no GPU that is large enough is without slices now"):
        place(Quota(GIB, 1, model="1g.10gb"), [part(2, slices=1), part(3, slices=1)])
    assert place(Quota(GIB, 1, model="1g.10gb"), [part(2, slices=1), part(3)], strategy=Strategy.BINPACK).index == 3
    labelled = replace(part(2), names=(*part(2).names, "teaching"))
    assert place(Quota(GIB, 1, model="teaching"), [room(0), labelled]).index == 2


def test_spread_gives_each_its_own_gpu_until_a_quarter_is_left_and_then_packs() -> None:
    rooms = [room(i) for i in range(8)]
    went = []
    for _ in range(12):
        chosen = place(Quota(GIB, 10), rooms, held=[Quota(16 * GIB, 100)])
        went.append(chosen.index)
        rooms[chosen.index] = replace(
            chosen,
            memory_reserved=chosen.memory_reserved + GIB,
            cores_reserved=chosen.cores_reserved + 10,
            slices=chosen.slices + 1,
        )
    assert went[:6] == [0, 1, 2, 3, 4, 5]
    assert set(went[6:]) <= {0, 1, 2, 3, 4, 5}  # and two whole ones are left for who needs one
    assert place(Quota(16 * GIB, 100), rooms).index in (6, 7)


def test_a_label_with_mps_in_it_makes_no_gpu_of_mps() -> None:
    with pytest.raises(NoRoom, match="no GPU called 'MPS'"):
        place(Quota(GIB, 10, model="MPS"), [replace(room(0), names=("H100", "no MPS here"))])
    with pytest.raises(NoRoom, match="GPU 1 is for slices that ask for them: give the model 'MPS'"):
        place(Quota(GIB, 10), [room(0), replace(room(1), names=("H100", "MPS"))], "1")
