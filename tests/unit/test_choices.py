"""What the spawn page offers, and what comes of the choice."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_vgpu_spawner.choices import allowed_slices, beyond, capacity, choices, pick, slice_key, why_too_many
from jupyter_vgpu_spawner.turns import Line, Space, Waiting

from jupyter_vgpu.quotas import Policy, Quota, QuotaError

GIB = 1 << 30
CEILING = Quota(4 * GIB, 50, Policy.BURST)
SLICES = [{"memory": "2G", "cores": 10}, {"memory": "4G", "cores": 50}, {"memory": "8G", "cores": 50}]


def gpu(memory: int, cores: float, name: str = "H100") -> dict[str, Any]:
    return {
        "name": name,
        "uuid": f"GPU-{memory}",
        "memory": {"free": memory, "total": 8 * GIB, "reserved": 8 * GIB - memory},
        "cores": {"free": cores, "total": 100, "reserved": 100 - cores},
        "closed": None,
        "labels": [],
        "slices": 0,
        "taken": False,
    }


def test_slices_above_the_ceiling_are_not_offered() -> None:
    assert [slice_key(quota) for quota in allowed_slices(SLICES, CEILING)] == ["2GiB-10", "4GiB-50"]


def test_the_others_are_shown_with_the_reason() -> None:
    slices = [*SLICES, {"memory": "1G", "cores": 60}, {"memory": "1G", "cores": 5, "model": "MPS"}]
    offered = allowed_slices(slices, CEILING, ["2GiB-10"])
    said = [(line.key, line.why_not, line.can_wait) for line in beyond(slices, CEILING, offered)]
    assert said == [
        ("4GiB-50", "not among the slices that you may choose: ask this hub's admins", False),
        ("8GiB-50", "more memory than you may have (4 GiB)", False),
        ("1GiB-60", "more compute than you may have (50 %)", False),
    ]  # and nothing of the one for who is trusted
    assert beyond([], CEILING, [CEILING]) == []


def test_without_slices_the_ceiling_is_the_slice() -> None:
    assert allowed_slices([], CEILING) == [CEILING]


def test_a_malformed_slice_in_the_config_is_named() -> None:
    with pytest.raises(
        QuotaError,
        match="gpu_slices has {'mem': '2G'}: each slice is a dict with 'memory' and 'cores', and perhaps 'model'",
    ):
        allowed_slices([{"mem": "2G"}], CEILING)


def test_what_has_no_room_says_why() -> None:
    lines = choices(allowed_slices(SLICES, CEILING), [gpu(3 * GIB, 20)])
    assert [line.why_not for line in lines] == ["", "in use by others: 3 GiB and 20 % of compute are free"]


def test_a_model_and_being_alone_are_told_and_named() -> None:
    whole = Quota(8 * GIB, 100, Policy.HARD)
    slices = [
        {"memory": "2G", "cores": 25, "model": "H100"},
        {"memory": "2G", "cores": 25, "model": "A 100"},
        {"memory": "4G", "cores": 50, "exclusive": True},
    ]
    offered = allowed_slices(slices, whole)
    assert [slice_key(each) for each in offered] == ["2GiB-25-H100", "2GiB-25-A_100", "4GiB-50-exclusive"]
    assert pick("4GiB-50-exclusive", offered) == Quota(4 * GIB, 50, exclusive=True)
    used = gpu(8 * GIB, 100) | {"slices": 1}
    lines = choices(offered, [used])
    assert [line.why_not for line in lines] == [
        "",
        "no GPU here is called 'A 100'",
        "each GPU that is large enough is in use by others",
    ]
    assert lines[2].title == "4 GiB of GPU memory, 50 % of its compute, with nobody else on it"
    # a GPU that is too small is no reason to wait for
    why = "each GPU that is large enough is in use by others"
    assert (
        choices([offered[2]], [used, gpu(GIB, 100) | {"memory": {"total": GIB, "free": GIB, "reserved": 0}}])[0].why_not
        == why
    )
    # a GPU alone is all of its compute
    assert [slice_key(each) for each in allowed_slices(slices, Quota(8 * GIB, 50))] == ["2GiB-25-H100", "2GiB-25-A_100"]


def test_who_may_have_less_than_any_slice_gets_no_other_gpu_by_it() -> None:
    small = Quota(GIB, 10)
    only = [{"memory": "2G", "cores": 25, "model": "teaching"}, {"memory": "2G", "cores": 25, "exclusive": True}]
    assert allowed_slices(only, small) == []
    assert allowed_slices([*only, {"memory": "2G", "cores": 25}], small) == [small]


def test_two_slices_of_one_name_are_told() -> None:
    twice = [{"memory": "2G", "cores": 25, "model": "A 100"}, {"memory": "2G", "cores": 25, "model": "A-100"}]
    with pytest.raises(QuotaError, match="two that are called '2GiB-25-A_100'"):
        allowed_slices(twice, Quota(8 * GIB, 100))


@pytest.mark.parametrize("wrong", [{"modle": "H100"}, {"exclusive": "no"}, {"model": 100}])
def test_a_slice_that_is_misspelled_is_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(QuotaError, match=r"gpu_slices has|exclusive='no' is neither|model=100 is no model"):
        allowed_slices([{"memory": "2G", "cores": 25} | wrong], Quota(8 * GIB, 100))


def test_a_node_in_maintenance_says_what_its_admin_says() -> None:
    line = choices([CEILING], [gpu(0, 0) | {"closed": "Restart at 18:00"}])[0]
    assert line.why_not == "no new ones now: Restart at 18:00"


def test_memory_on_one_gpu_and_compute_on_another_is_no_room() -> None:
    assert choices([CEILING], [gpu(8 * GIB, 0), gpu(0, 100)])[0].why_not


def test_what_is_in_use_may_be_waited_for_and_what_is_too_large_not() -> None:
    slices = [Quota(2 * GIB, 10), Quota(4 * GIB, 50), Quota(64 * GIB, 50)]
    gpus = [gpu(3 * GIB, 20)]
    lines = choices(slices, gpus)
    assert [(bool(line.why_not), line.can_wait) for line in lines] == [(False, False), (True, False), (True, False)]
    spaces = [Space.from_json(each) for each in gpus]
    assert [line.can_wait for line in choices(slices, gpus, Line(spaces))] == [False, True, False]
    before = [Waiting("bob", "", Quota(8 * GIB, 10), 0)]
    lines = choices(slices, gpus, Line(spaces, before))
    assert (lines[0].why_not, lines[0].can_wait) == ("others wait for a GPU before you", True)


def test_who_is_called_has_its_room_for_no_more_and_others_go_where_none_is_kept() -> None:
    spaces = [Space.from_json(each) for each in (gpu(7 * GIB, 100), gpu(2 * GIB, 100))]
    before = [Waiting("bob", "", Quota(8 * GIB, 10), 0)]
    small, medium = Quota(GIB, 10), Quota(4 * GIB, 10)
    assert Line(spaces, before).where(small) == f"GPU-{2 * GIB}"  # the other is kept for bob, though it has more free
    assert Line(spaces, before).must_wait(medium)
    assert Line(spaces).where(medium) is None  # nobody waits: the node's own placement
    called = Line(spaces, before, covered=Quota(4 * GIB, 10, Policy.BURST), gpu="GPU-x")
    assert (called.where(medium), called.must_wait(medium)) == ("GPU-x", False)
    assert called.must_wait(Quota(5 * GIB, 10))


def test_what_is_free_is_told_by_model() -> None:
    gpus = [gpu(GIB, 20), gpu(3 * GIB, 40), gpu(8 * GIB, 100, "L4")]
    assert capacity(gpus) == [
        "2 × H100: up to 3 GiB and 40 % of compute free on one",
        "L4: 8 GiB and 100 % of compute free",
    ]


def test_what_is_full_or_gives_nothing_now_is_told_so() -> None:
    full, without_compute, closed = gpu(0, 0), gpu(3 * GIB, 0, "L4"), gpu(0, 0, "T4") | {"closed": "new driver"}
    assert capacity([full, full, without_compute, closed]) == [
        "2 × H100: in use by others",
        "L4: in use by others",
        "T4: gives no new slices now",
    ]
    assert capacity([without_compute, gpu(GIB, 5, "L4")]) == ["2 × L4: up to 1 GiB and 5 % of compute free on one"]


@pytest.mark.parametrize("key", ["8GiB-50", "", "../../etc", 7, ["2GiB-10"], {"a": 1}, "<script>"])
def test_what_is_not_offered_can_not_be_had(key: object) -> None:
    with pytest.raises(QuotaError, match=r"is not one of yours: choose from 2GiB-10, 4GiB-50, none"):
        pick(key, allowed_slices(SLICES, CEILING))


def test_a_choice_carries_the_policy_of_the_config() -> None:
    picked = pick("2GiB-10", allowed_slices(SLICES, CEILING))
    assert picked == Quota(2 * GIB, 10, Policy.BURST)
    assert pick("none", []) is None


def test_a_slice_under_mps_is_offered_to_who_is_named_for_it() -> None:
    slices = [{"memory": "2G", "cores": 10}, {"memory": "2G", "cores": 10, "model": "MPS"}]
    offered = allowed_slices(slices, CEILING)
    assert [slice_key(quota) for quota in offered] == ["2GiB-10"]
    trusted = allowed_slices(slices, CEILING, ("2GiB-10-MPS",))
    assert [slice_key(quota) for quota in trusted] == ["2GiB-10-MPS"]
    assert allowed_slices(slices[1:], CEILING) == []
    with pytest.raises(QuotaError, match="is not one of yours"):
        pick("2GiB-10-MPS", offered)
    shared = gpu(8 * GIB, 100) | {"labels": ["MPS"]}
    (line,) = choices(trusted, [shared])
    assert (line.title, line.why_not) == (
        "2 GiB of GPU memory, 10 % of its compute, and more while the GPU is idle, at the same time as others (MPS)",
        "",
    )
    assert choices(offered, [shared])[0].why_not == "all GPUs here are for other slices (MIG, MPS)"
    assert choices(trusted, [gpu(8 * GIB, 100)])[0].why_not == "no GPU here is called 'MPS'"


def test_a_slice_under_mps_takes_nothing_from_who_may_not_have_it() -> None:
    small = Quota(2 * GIB, 20)
    large, shared = {"memory": "4G", "cores": 25}, {"memory": "1G", "cores": 10, "model": "MPS"}
    assert allowed_slices([large], small) == allowed_slices([large, shared], small) == [small]


def test_servers_in_the_queue_count_with_those_that_have_a_gpu() -> None:
    assert why_too_many([], [], 1) == why_too_many(["a"], ["b"], 3) == ""
    assert why_too_many([""], [], 1) == (
        "you may have 1 server with a GPU at once, and have the default one: stop one first"
    )
    assert why_too_many(["a"], ["b"], 2) == (
        "you may have 2 servers with a GPU at once, and have 'a' and wait for one with 'b': leave the queue with that first"
    )
