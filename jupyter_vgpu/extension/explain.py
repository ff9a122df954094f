"""What a refused allocation means to a person: whose it was, who held the rest, and the best ways out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .attribution import Json, Owner

WAYS = 2
"""So many ways out are offered: more are a menu, not an advice."""


@dataclass(frozen=True, slots=True)
class Involved:
    """Whose processes a refusal was about: found when it is first seen, for numbers are reused later."""

    asker: Owner
    holders: tuple[tuple[Owner, int], ...]


def involved(
    refusal: Mapping[str, Any], owners: Mapping[int, Owner], owner: Callable[[Mapping[str, Any]], Owner]
) -> Involved:
    """refusal: as vgpud tells it. owners: by pid, of kernels and terminals. owner: of a process that lives."""
    asker = next((owners[pid] for pid in refusal["line"] if pid in owners), None) or owner(refusal["process"])
    held: dict[Owner, int] = {}
    for process in refusal["holders"]:
        same = process["pid_in_slice"] == refusal["process"]["pid_in_slice"]
        holder = asker if same else owner(process)
        held[holder] = held.get(holder, 0) + process["memory"]
    return Involved(asker, tuple(sorted(held.items(), key=lambda item: -item[1])))


def explain(refusal: Mapping[str, Any], quota: int, who: Involved, rows: Sequence[Json]) -> Json:
    """One refusal, as the panel shows it. quota: bytes of the slice. rows: who holds what now, as `attribute` says."""
    fits = refusal["bytes"] <= quota
    return {
        "first": refusal["first"],
        "time": refusal["time"],
        "times": refusal["times"],
        "call": refusal["call"],
        "bytes": refusal["bytes"],
        "free": refusal["free"],
        "asker": asdict(who.asker),
        "holders": [{**asdict(holder), "memory": memory} for holder, memory in who.holders if memory],
        "fits_never": not fits,
        "ways": ways_out(refusal["bytes"] - refusal["free"], who.asker, rows) if fits else [],
    }


def ways_out(lack: int, asker: Owner, rows: Sequence[Json]) -> list[Json]:
    """The best ways to so many bytes more: end another that rests and holds enough, or begin anew with the asker.

    Where none is enough by itself, those that free the most.
    """
    ways = [way for row in rows if row["id"] and row["memory"] and (way := _way(row, asker))]
    enough = [way for way in ways if way["frees"] >= lack]
    if not enough:
        return sorted(ways, key=lambda way: -way["frees"])[:WAYS]
    others = [way for way in enough if way["action"] == "shutdown"]
    others.sort(key=lambda way: (way["busy"], way["frees"]))
    restart = [way for way in enough if way["action"] == "restart"]
    return [*others[:1], *restart, *others[1:]][:WAYS]


def _way(row: Json, asker: Owner) -> Json | None:
    its_own = (row["kind"], row["id"]) == (asker.kind, asker.id)
    if its_own and asker.kind == "terminal":  # in which a person works
        return None
    return {
        "action": "restart" if its_own else "shutdown",
        "kind": row["kind"],
        "id": row["id"],
        "name": row["name"],
        "busy": row["busy"],
        "frees": row["memory"],
    }
