"""What a person is told of refused allocations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jupyter_vgpu.node.refusals import KEPT, Holder, Refusal, Refusals, call_name

ME, OTHER = Holder(7, 3, "python3", 500), Holder(8, 4, "python3", 300)
FIRST = Refusal(time=100.0, process=ME, bytes=1000, free=10, call="cuMemAlloc", holders=(ME, OTHER))


def added(*refusals: Refusal) -> list[tuple[float, int, str | None, int]]:
    kept = Refusals()
    for refusal in refusals:
        kept.add(refusal)
    return [(refusal.time, refusal.bytes, refusal.call, refusal.times) for refusal in kept]


def test_another_try_at_once_is_one_event_and_a_later_one_another() -> None:
    assert added(FIRST, replace(FIRST, time=101.0)) == [(101.0, 1000, "cuMemAlloc", 2)]
    assert added(FIRST, replace(FIRST, time=103.0)) == [(100.0, 1000, "cuMemAlloc", 1), (103.0, 1000, "cuMemAlloc", 1)]
    assert len(added(FIRST, replace(FIRST, bytes=2000))) == 2
    assert len(added(FIRST, replace(FIRST, process=OTHER))) == 2


def test_one_event_is_known_by_when_it_was_first() -> None:
    kept = Refusals()
    for time in (100.0, 101.0, 102.5, 110.0):
        kept.add(replace(FIRST, time=time, first=time))
    assert [(refusal.first, refusal.time, refusal.times) for refusal in kept] == [(100.0, 102.5, 3), (110.0, 110.0, 1)]


def test_guard_and_shim_speak_of_one_refusal_in_either_order() -> None:
    guards = replace(FIRST, call=None, bytes=2048)
    assert added(guards, replace(FIRST, time=100.1)) == [(100.1, 1000, "cuMemAlloc", 1)]
    assert added(FIRST, replace(guards, time=100.1)) == [(100.1, 1000, "cuMemAlloc", 1)]


def test_only_the_last_are_kept() -> None:
    times = [time for time, *_ in added(*(replace(FIRST, time=100.0 + 10 * i) for i in range(KEPT + 5)))]
    assert times == [100.0 + 10 * i for i in range(5, KEPT + 5)]


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("cuMemAlloc_v2", "cuMemAlloc"),
        ("cuMemAllocAsync_ptsz", "cuMemAllocAsync"),
        ("cuMemcpyHtoD_v2_ptds", "cuMemcpyHtoD"),
    ],
)
def test_calls_have_the_names_of_their_documentation(symbol: str, name: str) -> None:
    assert call_name(symbol) == name
