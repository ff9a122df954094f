"""Which GPU a slice goes to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..quota import Quota, format_bytes, format_percent


@dataclass(frozen=True, slots=True)
class Room:
    """One GPU and what is reserved on it. Bytes and percent; the totals have the overcommit factors in them."""

    uuid: str
    index: int
    memory_total: int
    memory_reserved: int
    cores_total: float
    cores_reserved: float

    @property
    def memory_free(self) -> int:
        return max(0, self.memory_total - self.memory_reserved)

    @property
    def cores_free(self) -> float:
        return max(0.0, round(self.cores_total - self.cores_reserved, 3))

    def fits(self, quota: Quota) -> bool:
        return quota.memory <= self.memory_free and quota.cores <= self.cores_free


class NoRoom(Exception):
    """No GPU can take the slice; the message says what would fit."""


def place(quota: Quota, rooms: Sequence[Room], wanted: str | None = None) -> Room:
    """Pick the GPU with the most free memory for a slice, or raise NoRoom.

    Reserves nothing. Ties go to the lowest index, so the answer is the same on every call.
    wanted: only the GPU of this UUID or index will do.
    """
    candidates = [room for room in rooms if wanted in (None, room.uuid, str(room.index))]
    if not candidates:
        known = ", ".join(room.uuid for room in rooms) or "none"
        raise NoRoom(f"this node has no GPU {wanted}; it has: {known}")
    fitting = [room for room in candidates if room.fits(quota)]
    if not fitting:
        raise NoRoom(_why_not(quota, candidates))
    return max(fitting, key=lambda room: (room.memory_free, -room.index))


def _why_not(quota: Quota, rooms: Sequence[Room]) -> str:
    best = max(rooms, key=lambda room: (room.memory_free if room.cores_free > 0 else -1, -room.index))
    free = f"{format_bytes(best.memory_free)} and {format_percent(best.cores_free)} of compute on GPU {best.index}"
    if all(quota.memory > room.memory_total or quota.cores > room.cores_total for room in rooms):
        largest = max(room.memory_total for room in rooms)
        has = f"the largest has {format_bytes(largest)}"
        return f"no GPU here is large enough for {quota}: {has}. Ask for a smaller slice."
    return (
        f"no GPU has {format_bytes(quota.memory)} and {format_percent(quota.cores)} of compute free now. "
        f"Largest free slice: {free}. Ask for a smaller one, or wait until a server stops."
    )
