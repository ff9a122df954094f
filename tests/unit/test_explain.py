"""What is said of a refused allocation, and what can be done about it."""

from __future__ import annotations

from typing import Any

from jupyter_vgpu.extension.attribution import Owner
from jupyter_vgpu.extension.explain import explain, ways_out

GIB = 1 << 30
TRAIN = Owner("notebook", "train.ipynb", "train.ipynb", "k1")
OWNERS = {1: TRAIN, 2: Owner("notebook", "old.ipynb", "old.ipynb", "k2"), 3: Owner("terminal", "Terminal 1", None, "1")}


def row(pid: int, memory: int, busy: bool = False) -> dict[str, Any]:
    owner = OWNERS[pid]
    return {"kind": owner.kind, "name": owner.name, "path": owner.path, "id": owner.id, "memory": memory, "busy": busy}


def process(pid: int, memory: int) -> dict[str, Any]:
    return {"pid": 1000 + pid, "pid_in_slice": pid, "name": "python3", "memory": memory}


def refusal(size: int, **more: Any) -> dict[str, Any]:
    holders = [process(2, 2 * GIB), process(1, GIB)]
    told = {"time": 5.0, "times": 1, "call": "cuMemAlloc", "bytes": size, "free": GIB, "process": process(1, GIB)}
    return told | {"holders": holders} | more


def owner(process: Any) -> Owner:
    return OWNERS.get(process["pid_in_slice"]) or Owner("other", process["name"])


def said(ways: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(way["action"], way["name"], way["frees"]) for way in ways]


def test_who_asked_who_holds_and_what_helps() -> None:
    told = explain(refusal(2 * GIB), 4 * GIB, owner, [row(2, 2 * GIB), row(1, GIB)])
    assert (told["asker"]["name"], told["bytes"], told["free"], told["fits_never"]) == (
        "train.ipynb",
        2 * GIB,
        GIB,
        False,
    )
    assert [(each["name"], each["memory"]) for each in told["holders"]] == [
        ("old.ipynb", 2 * GIB),
        ("train.ipynb", GIB),
    ]
    assert said(told["ways"]) == [("shutdown", "old.ipynb", 2 * GIB), ("restart", "train.ipynb", GIB)]


def test_who_holds_much_as_several_processes_is_one() -> None:
    several = [process(1, GIB), process(2, GIB), process(2, GIB), process(9, 0)]
    told = explain(refusal(2 * GIB, holders=several), 4 * GIB, owner, [])
    assert [(each["name"], each["memory"]) for each in told["holders"]] == [
        ("old.ipynb", 2 * GIB),
        ("train.ipynb", GIB),
    ]


def test_nothing_is_offered_for_what_never_fits() -> None:
    told = explain(refusal(5 * GIB), 4 * GIB, owner, [row(2, 2 * GIB), row(1, GIB)])
    assert told["fits_never"]
    assert told["ways"] == []


def test_who_works_is_ended_last_and_who_holds_enough_first() -> None:
    assert said(ways_out(GIB, TRAIN, [row(2, 2 * GIB, busy=True), row(3, 2 * GIB), row(1, GIB)]))[0][1] == "Terminal 1"
    assert said(ways_out(GIB, TRAIN, [row(2, 3 * GIB), row(3, GIB // 2), row(1, GIB)]))[0][1] == "old.ipynb"
    assert said(ways_out(GIB, TRAIN, [row(2, 3 * GIB), row(3, GIB), row(1, GIB)]))[0][1] == "Terminal 1"


def test_a_process_of_nobody_can_not_be_ended_by_a_button() -> None:
    alone = {"kind": "other", "name": "mine", "path": None, "id": None, "memory": GIB, "busy": False}
    assert said(ways_out(GIB, Owner("other", "mine"), [alone])) == []
    assert said(ways_out(GIB, OWNERS[3], [row(3, GIB)])) == []  # a terminal holds a person's work
