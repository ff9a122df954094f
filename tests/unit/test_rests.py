"""Who holds GPU memory and rests, for the student's side."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jupyter_vgpu.extension.rests import Rests
from jupyter_vgpu.idle import LABEL, Action, IdleRule

NOW, GIB = 1000.0, 1 << 30
KERNEL, SERVER = IdleRule(600, Action.KERNEL), IdleRule(600, Action.SERVER)


def row(name: str, last_active: float | None, *, memory: int = GIB, busy: bool = False, kind: str = "notebook") -> Any:
    return {"kind": kind, "id": name, "name": name, "memory": memory, "busy": busy, "last_active": last_active}


def view(last_active: float, *, memory: int = GIB, busy: bool = False) -> dict[str, Any]:
    return {"usage": {"memory": memory}, "activity": {"busy": busy, "last_active": last_active}}


def look(
    rests: Rests, rule: IdleRule, view: dict[str, Any], rows: list[Any], now: float = NOW
) -> list[tuple[str, float]]:
    return [(rest["name"], rest["until"]) for rest in rests.look(rule, view, rows, now)]


def test_a_rule_is_read_as_it_was_written_and_what_is_none_is_no_rule() -> None:
    assert IdleRule.of({LABEL: KERNEL.as_label()}) == KERNEL
    strange = [
        "",
        "null",
        "[]",
        '{"seconds": 1}',
        '{"seconds": "x", "action": "kernel"}',
        '{"seconds": 1, "action": "?"}',
    ]
    assert [IdleRule.of({LABEL: label}) for label in strange] == [None] * len(strange)
    assert IdleRule.of({}) is None
    assert len(json.dumps(KERNEL.as_label())) < 255


def test_kernels_that_hold_and_rest_are_found_and_others_are_not() -> None:
    rows = [
        row("rests", 900.0),
        row("works", 999.0, busy=True),
        row("uses nothing", 100.0, memory=0),
        row("a terminal", 100.0, kind="terminal"),
        row("a program", 100.0, kind="other"),
    ]
    assert look(Rests(), KERNEL, view(NOW, busy=True), rows) == [("rests", 1500.0)]


def test_who_never_worked_rests_since_it_was_first_seen() -> None:
    rests = Rests()
    assert look(rests, KERNEL, view(NOW), [row("new", None)]) == [("new", 1600.0)]
    assert look(rests, KERNEL, view(NOW), [row("new", None)], NOW + 50) == [("new", 1600.0)]
    assert look(rests, KERNEL, view(NOW), [row("new", None, memory=0)], NOW + 60) == []
    assert look(rests, KERNEL, view(NOW), [row("new", None)], NOW + 70) == [("new", 1670.0)]


@pytest.mark.parametrize(
    ("slice_view", "found"),
    [(view(900.0), [("", 1500.0)]), (view(900.0, memory=0), []), (view(900.0, busy=True), [])],
)
def test_a_server_rests_as_a_whole(slice_view: dict[str, Any], found: list[tuple[str, float]]) -> None:
    assert look(Rests(), SERVER, slice_view, [row("rests", 10.0)]) == found
