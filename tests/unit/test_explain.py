"""What is said of a refused allocation, and what can be done about it."""

from __future__ import annotations

from typing import Any

from jupyter_vgpu.extension.attribution import Owner
from jupyter_vgpu.extension.explain import Involved, explain, involved, ways_out

GIB = 1 << 30
TRAIN, OLD = Owner("notebook", "train.ipynb", "train.ipynb", "k1"), Owner("notebook", "old.ipynb", "old.ipynb", "k2")
TERMINAL = Owner("terminal", "Terminal 1", None, "1")
OWNERS = {1: TRAIN, 2: OLD, 3: TERMINAL}


def row(owner: Owner, memory: int, busy: bool = False) -> dict[str, Any]:
    return {"kind": owner.kind, "name": owner.name, "path": owner.path, "id": owner.id, "memory": memory, "busy": busy}


def process(pid: int, memory: int) -> dict[str, Any]:
    return {"pid": 1000 + pid, "pid_in_slice": pid, "name": "python3", "memory": memory}


def refusal(size: int, **more: Any) -> dict[str, Any]:
    holders = [process(2, 2 * GIB), process(1, GIB)]
    told = {"first": 4.0, "time": 5.0, "times": 2, "call": "cuMemAlloc", "bytes": size, "free": GIB}
    return told | {"process": process(1, GIB), "line": (1,), "holders": holders} | more


def owner(process: Any) -> Owner:
    return OWNERS.get(process["pid_in_slice"]) or Owner("other", process["name"])


def said(ways: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(way["action"], way["name"], way["frees"]) for way in ways]


def test_who_asked_who_holds_and_what_helps() -> None:
    who = involved(refusal(2 * GIB), OWNERS, owner)
    told = explain(refusal(2 * GIB), 4 * GIB, who, [row(OLD, 2 * GIB), row(TRAIN, GIB)])
    assert (told["asker"]["name"], told["bytes"], told["free"], told["fits_never"]) == (
        "train.ipynb",
        2 * GIB,
        GIB,
        False,
    )
    assert (told["first"], told["time"], told["times"]) == (4, 5, 2)
    assert [(each["name"], each["memory"]) for each in told["holders"]] == [
        ("old.ipynb", 2 * GIB),
        ("train.ipynb", GIB),
    ]
    assert said(told["ways"]) == [("shutdown", "old.ipynb", 2 * GIB), ("restart", "train.ipynb", GIB)]


def test_a_child_that_has_ended_since_was_its_notebooks() -> None:
    child = refusal(2 * GIB, process=process(77, 0), line=(77, 50, 1, 9), holders=[process(77, 0), process(2, GIB)])
    assert involved(child, OWNERS, owner) == Involved(TRAIN, ((OLD, GIB), (TRAIN, 0)))
    assert involved(refusal(GIB, process=process(77, 0), line=(77, 50)), OWNERS, owner).asker.name == "python3"


def test_who_holds_much_as_several_processes_is_one() -> None:
    several = [process(1, GIB), process(2, GIB), process(2, GIB), process(9, 0)]
    who = involved(refusal(2 * GIB, holders=several), OWNERS, owner)
    told = explain(refusal(2 * GIB), 4 * GIB, who, [])
    assert [(each["name"], each["memory"]) for each in told["holders"]] == [
        ("old.ipynb", 2 * GIB),
        ("train.ipynb", GIB),
    ]


def test_nothing_is_offered_for_what_never_fits() -> None:
    who = involved(refusal(5 * GIB), OWNERS, owner)
    told = explain(refusal(5 * GIB), 4 * GIB, who, [row(OLD, 2 * GIB), row(TRAIN, GIB)])
    assert told["fits_never"]
    assert told["ways"] == []


def test_who_works_is_ended_last_and_who_frees_the_least_of_enough_first() -> None:
    rows = [row(OLD, 2 * GIB, busy=True), row(TERMINAL, 3 * GIB), row(TRAIN, GIB)]
    assert said(ways_out(GIB, TRAIN, rows)) == [("shutdown", "Terminal 1", 3 * GIB), ("restart", "train.ipynb", GIB)]
    assert said(ways_out(GIB, TRAIN, [row(OLD, 3 * GIB), row(TERMINAL, GIB)]))[0][1] == "Terminal 1"
    assert said(ways_out(GIB, TRAIN, [row(OLD, 3 * GIB), row(TERMINAL, GIB // 2)])) == [
        ("shutdown", "old.ipynb", 3 * GIB)
    ]


def test_what_frees_nothing_is_no_way_out_and_too_little_is_one_only_where_nothing_is_enough() -> None:
    assert said(ways_out(GIB, TRAIN, [row(OLD, 2 * GIB), row(TRAIN, 0)])) == [("shutdown", "old.ipynb", 2 * GIB)]
    assert said(ways_out(GIB, TRAIN, [row(OLD, 2 * GIB), row(TRAIN, 100)])) == [("shutdown", "old.ipynb", 2 * GIB)]
    little = [row(OLD, 200), row(TERMINAL, 300), row(TRAIN, 100)]
    assert said(ways_out(GIB, TRAIN, little)) == [("shutdown", "Terminal 1", 300), ("shutdown", "old.ipynb", 200)]


def test_a_process_of_nobody_can_not_be_ended_by_a_button() -> None:
    nobody = Owner("other", "mine")
    assert ways_out(GIB, nobody, [row(nobody, GIB)]) == []
    assert ways_out(GIB, TERMINAL, [row(TERMINAL, GIB)]) == []  # a person works in it
