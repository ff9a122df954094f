"""Which GPU a slice goes to. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..quotas import MIG, MPS, Quota, format_bytes, format_percent, goes_alone, has_room, is_called, is_roomy


@dataclass(frozen=True, slots=True)
class Room:
    """One GPU and what is reserved on it. Bytes and percent; the totals have the overcommit factors in them.

    names: its model, and its labels. slices: how many there are. taken: one of them is alone there.
    """

    uuid: str
    index: int
    memory_total: int
    memory_reserved: int
    cores_total: float
    cores_reserved: float
    names: tuple[str, ...] = ()
    slices: int = 0
    taken: bool = False

    @property
    def memory_free(self) -> int:
        return 0 if self.taken else max(0, self.memory_total - self.memory_reserved)

    @property
    def cores_free(self) -> float:
        return 0.0 if self.taken else max(0.0, round(self.cores_total - self.cores_reserved, 3))

    def is_meant(self, quota: Quota) -> bool:
        """It is called what the slice asks for."""
        return is_called(quota.model, self.names)

    def is_for_one(self, quota: Quota) -> bool:
        """Such a slice has all of it."""
        return goes_alone(quota, self.names)

    def fits(self, quota: Quota) -> bool:
        return has_room(quota, self.names, self.slices, self.memory_free, self.cores_free)


class NoRoom(Exception):
    """No GPU can take the slice; the message says what would fit."""


class Strategy(StrEnum):
    """`binpack`: to the first GPU where the slice leaves little that others can't use, so that whole GPUs stay free for
    large slices. `spread`: while over a quarter of the GPUs are empty to the one with the most free memory, so that
    neighbours are few; then as `binpack`."""

    SPREAD = "spread"
    BINPACK = "binpack"


def place(
    quota: Quota,
    rooms: Sequence[Room],
    wanted: str | None = None,
    strategy: Strategy = Strategy.SPREAD,
    held: Iterable[Quota] = (),
) -> Room:
    """Pick the GPU for a slice, or raise NoRoom.

    Reserves nothing. Ties go to the lowest index, so the answer is the same on every call.
    wanted: only the GPU of this UUID or index will do. held: the slices that there are; others like them will come.
    """
    candidates = [room for room in rooms if wanted in (None, room.uuid, str(room.index))]
    if not candidates:
        known = ", ".join(f"{room.index} ({room.uuid})" for room in rooms) or "none"
        raise NoRoom(f"this node has no GPU {wanted}; it has: {known}")
    meant = [room for room in candidates if room.is_meant(quota)]
    if not meant and not quota.model:
        which = f"GPU {wanted} is" if wanted else "all GPUs of this node are"
        kinds = sorted({name for room in candidates for name in room.names} & {MIG, MPS})
        ask = " or ".join(map(repr, kinds))
        raise NoRoom(f"{which} for slices that ask for them: give the model {ask}")
    if not meant:
        known = ", ".join(sorted({name for room in candidates for name in room.names}))
        raise NoRoom(f"this node has no GPU called {quota.model!r}; it has: {known}")
    fitting = [room for room in meant if room.fits(quota)]
    if not fitting:
        raise NoRoom(_why_not(quota, meant))
    if all(room.is_for_one(quota) for room in fitting):  # it takes all of it, so the smallest
        return min(fitting, key=lambda room: (room.memory_total, room.index))
    if strategy is Strategy.SPREAD and is_roomy([room.slices for room in meant]):
        return max(fitting, key=lambda room: (room.memory_free, -room.index))
    sizes = Counter((each.memory, each.cores) for each in (*held, quota))
    order = {room.uuid: at / len(rooms) for at, room in enumerate(rooms)}  # an index may be any number
    return min(fitting, key=lambda room: (_newly_stranded(room, quota, sizes) + order[room.uuid], room.index))


def _newly_stranded(room: Room, quota: Quota, sizes: Counter[tuple[int, float]]) -> float:
    """How much more of the GPU others could not use. Weng et al., "Beware of Fragmentation", USENIX ATC 2023."""
    memory, cores = room.memory_free, room.cores_free
    return _stranded(room, memory - quota.memory, cores - quota.cores, sizes) - _stranded(room, memory, cores, sizes)


def _stranded(room: Room, memory: int, cores: float, sizes: Counter[tuple[int, float]]) -> float:
    """The part of a GPU that is free and that a slice of these sizes, drawn at random, can't use."""
    useless = sum(count for (size, percent), count in sizes.items() if size > memory or percent > cores)
    return useless / sizes.total() * (memory / room.memory_total + cores / room.cores_total) / 2


def _why_not(quota: Quota, rooms: Sequence[Room]) -> str:
    large = [room for room in rooms if quota.memory <= room.memory_total and quota.cores <= room.cores_total]
    best = max(large or rooms, key=lambda room: (room.memory_free if room.cores_free > 0 else -1, -room.index))
    free = f"{format_bytes(best.memory_free)} and {format_percent(best.cores_free)} of compute on GPU {best.index}"
    if not large:
        largest = max(room.memory_total for room in rooms)
        has = f"the largest has {format_bytes(largest)}"
        return f"no GPU here is large enough for {quota}: {has}. Ask for a smaller slice."
    if all(room.is_for_one(quota) for room in large):
        return (
            f"no GPU that is large enough is without slices now, as {quota} needs it. Ask for a shared one, or wait "
            "until servers stop."
        )
    return (
        f"no GPU has {format_bytes(quota.memory)} and {format_percent(quota.cores)} of compute free now. "
        f"Largest free slice: {free}. Ask for a smaller one, or wait until a server stops."
    )
