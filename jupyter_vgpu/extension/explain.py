"""What a refused allocation means to a person: whose it was, who held the rest, and the best ways out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .attribution import Json, Owner

WAYS = 2
"""So many ways out are offered: more are a menu, not an advice."""


def explain(
    refusal: Mapping[str, Any], quota: int, owner: Callable[[Mapping[str, Any]], Owner], rows: Sequence[Json]
) -> Json:
    """One refusal, as the panel shows it.

    refusal: as vgpud tells it. quota: bytes of the slice. owner: of a process in it. rows: who holds what now, as
    `attribute` gives them.
    """
    asker = owner(refusal["process"])
    held: dict[Owner, int] = {}
    for process in refusal["holders"]:
        holder = owner(process)
        held[holder] = held.get(holder, 0) + process["memory"]
    holders = sorted(held.items(), key=lambda item: -item[1])
    return {
        "time": refusal["time"],
        "times": refusal["times"],
        "call": refusal["call"],
        "bytes": refusal["bytes"],
        "free": refusal["free"],
        "asker": asdict(asker),
        "holders": [{**asdict(holder), "memory": memory} for holder, memory in holders if memory],
        "fits_never": refusal["bytes"] > quota,
        "ways": [] if refusal["bytes"] > quota else ways_out(refusal["bytes"] - refusal["free"], asker, rows),
    }


def ways_out(lack: int, asker: Owner, rows: Sequence[Json]) -> list[Json]:
    """The best ways to so many bytes more: end another that rests and holds enough, or begin anew with the asker."""
    others = [row for row in rows if row["id"] and row["memory"] and (row["kind"], row["id"]) != (asker.kind, asker.id)]
    others.sort(key=lambda row: (row["busy"], row["memory"] < lack, abs(row["memory"] - lack)))
    ways = [_way("shutdown", row) for row in others]
    for row in rows:
        if asker.id and (row["kind"], row["id"]) == (asker.kind, asker.id) and asker.kind != "terminal":
            ways.insert(1, _way("restart", row))
    return ways[:WAYS]


def _way(action: str, row: Json) -> Json:
    return {
        "action": action,
        "kind": row["kind"],
        "id": row["id"],
        "name": row["name"],
        "busy": row["busy"],
        "frees": row["memory"],
    }
