"""Whose turn it is where the GPUs are full, and when it may come. Pure."""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from jupyter_vgpu.quotas import Quota, goes_alone, has_room, is_called

AGE_S = 3600.0
"""So long a wait outweighs a group that holds every GPU."""
MIN_LIFETIMES = 10
"""With fewer servers that have ended nothing is foretold."""
_SAMPLES, _ENDS_MAX, _LONGER_MIN = 40, 400, 3


@dataclass(frozen=True, slots=True)
class Space:
    """One GPU: bytes and percent, with the overcommit factors in them.

    names: its model, and its labels. slices: how many are on it. taken: one of them is alone there.
    """

    memory_total: int
    memory_free: int
    cores_total: float
    cores_free: float
    uuid: str = ""
    names: tuple[str, ...] = ()
    slices: int = 0
    taken: bool = False

    @classmethod
    def from_json(cls, gpu: Mapping[str, Any]) -> Space:
        """Of what vgpud says of a GPU."""
        memory, cores = gpu["memory"], gpu["cores"]

        def free(of: Mapping[str, Any]) -> float:
            return 0 if gpu["closed"] else max(0, round(of["total"] - of["reserved"], 3))

        return cls(
            int(memory["total"]),
            int(free(memory)),
            float(cores["total"]),
            float(free(cores)),
            str(gpu["uuid"]),
            (str(gpu["name"]), *gpu["labels"]),
            int(gpu["slices"]),
            bool(gpu["taken"]),
        )

    def is_meant(self, quota: Quota) -> bool:
        """It is called what the slice asks for."""
        return is_called(quota.model, self.names)

    def is_for_one(self, quota: Quota) -> bool:
        """Such a slice has all of it."""
        return goes_alone(quota, self.names)

    def fits(self, quota: Quota) -> bool:
        return not self.taken and has_room(quota, self.names, self.slices, self.memory_free, self.cores_free)

    def could_fit(self, quota: Quota) -> bool:
        """Once everybody has gone."""
        return self.is_meant(quota) and quota.memory <= self.memory_total and quota.cores <= self.cores_total

    def lacks(self, quota: Quota) -> float:
        """How much must become free first, as a part of the GPU."""
        if self.taken:
            return 1.0
        whole = self.is_for_one(quota)
        memory, cores = (self.memory_total, self.cores_total) if whole else (quota.memory, quota.cores)
        return max((memory - self.memory_free) / self.memory_total, (cores - self.cores_free) / self.cores_total)

    def leaves(self, quota: Quota) -> float:
        """How much of the GPU is free beside the slice; the less, the more room large ones find elsewhere.

        Of who takes all of it: how large the GPU is.
        """
        if self.is_for_one(quota):
            return float(self.memory_total)
        memory, cores = self.memory_free - quota.memory, self.cores_free - quota.cores
        return memory / self.memory_total + cores / self.cores_total

    def less(self, quota: Quota) -> Space:
        """With one slice more on it."""
        return self._changed(quota, 1)

    def more(self, quota: Quota) -> Space:
        """Without one that was on it."""
        return self._changed(quota, -1)

    def _changed(self, quota: Quota, slices: int) -> Space:
        return replace(
            self,
            memory_free=self.memory_free - slices * quota.memory,
            cores_free=round(self.cores_free - slices * quota.cores, 3),
            slices=self.slices + slices,
            taken=slices > 0 if self.is_for_one(quota) else self.taken,
        )

    def kept(self) -> Space:
        """Nothing of it is for anybody else."""
        return replace(self, memory_free=0, cores_free=0.0)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A server that is to start when there is room. since: seconds since 1970."""

    user: str
    server: str
    quota: Quota
    since: float


@dataclass(frozen=True, slots=True)
class Running:
    """A slice that will end some day. gpu: its place among the spaces. age: seconds."""

    gpu: int
    quota: Quota
    age: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until a turn: half of such waits are shorter than `middle`, nine in ten shorter than `late`.

    None: longer than can be told.
    """

    middle: float | None
    late: float | None


def in_order(waiting: Iterable[Waiting], loads: Mapping[str, float], now: float) -> list[Waiting]:
    """Who comes before whom: users of groups that hold little, and who has waited long."""

    def weight(each: Waiting) -> tuple[float, float, str, str]:
        return (loads.get(each.user, 0.0) - (now - each.since) / AGE_S, each.since, each.user, each.server)

    return sorted(waiting, key=weight)


def _whole(quota: Quota, spaces: Iterable[Space]) -> tuple[float, float] | None:
    """What a slice takes that is alone on its GPU: the smallest that can hold it; None: it is not alone."""
    large = [space for space in spaces if space.could_fit(quota)]
    if not large or not all(space.is_for_one(quota) for space in large):
        return None
    smallest = min(large, key=lambda space: space.memory_total)
    return smallest.memory_total, smallest.cores_total


def loads(
    held: Iterable[tuple[str, Quota]],
    groups: Mapping[str, Iterable[str]],
    shares: Mapping[str, float],
    spaces: Sequence[Space],
) -> dict[str, float]:
    """By user: the part of all GPUs that the user's group holds, by the group's share; of several groups the least.

    A user in no group is one alone. Of memory and compute the larger part counts (dominant resource fairness, Ghodsi
    et al., NSDI 2011). groups: of all users that are asked for. shares: of groups that have another than 1.
    """
    memory = sum(space.memory_total for space in spaces) or 1
    cores = sum(space.cores_total for space in spaces) or 1.0
    wholes: dict[Quota, tuple[float, float] | None] = {}
    sums: dict[tuple[bool, str], tuple[float, float]] = {}
    for user, quota in held:
        for key in [(True, name) for name in groups.get(user, ())] or [(False, user)]:
            before = sums.get(key, (0, 0.0))
            if quota not in wholes:
                wholes[quota] = _whole(quota, spaces)
            more = wholes[quota] or (quota.memory, quota.cores)
            sums[key] = (before[0] + more[0], before[1] + more[1])

    def load(key: tuple[bool, str]) -> float:
        held_memory, held_cores = sums.get(key, (0, 0.0))
        share = shares.get(key[1], 1.0) if key[0] else 1.0
        return max(held_memory / memory, held_cores / cores) / share

    return {
        user: min(load(key) for key in [(True, name) for name in names] or [(False, user)])
        for user, names in groups.items()
    }


def seat(order: Sequence[Waiting], spaces: Sequence[Space]) -> tuple[list[tuple[Waiting, int]], list[Space]]:
    """Who may start now and on which GPU, and what is left for those who come later.

    Who finds no room keeps the GPU that lacks least for it: nobody who comes later gets what becomes free there, so
    that a large slice's turn comes too. What no GPU could ever hold keeps nothing.
    """
    seated, left, keeps = _seat(order, spaces)
    return seated, [space.kept() if at in keeps else space for at, space in enumerate(left)]


_Seats: TypeAlias = tuple[list[tuple[Waiting, int]], list[Space], dict[int, Waiting]]
"""Who may start and where, what is left, and which GPUs are kept for whom."""


def _seat(order: Sequence[Waiting], spaces: Sequence[Space]) -> _Seats:
    left, seated = list(spaces), []
    keeps: dict[int, Waiting] = {}
    for each in order:
        if len(keeps) == len(left):
            break
        free = [at for at in range(len(left)) if at not in keeps and left[at].could_fit(each.quota)]
        fitting = [at for at in free if left[at].fits(each.quota)]
        if fitting:
            at = min(fitting, key=lambda at: left[at].leaves(each.quota))
            left[at] = left[at].less(each.quota)
            seated.append((each, at))
        elif free:
            keeps[min(free, key=lambda at: (left[at].lacks(each.quota), left[at].memory_total))] = each
    return seated, left, keeps


def is_possible(quota: Quota, spaces: Iterable[Space]) -> bool:
    """Will there ever be room for it?"""
    return any(space.could_fit(quota) for space in spaces)


def room_for(quota: Quota, ahead: Sequence[Waiting], spaces: Sequence[Space]) -> Space | None:
    """The GPU that a newcomer may have, beside what those who are ahead get or keep. None: it has to wait."""
    _, left = seat(ahead, spaces)
    fitting = [space for space in left if space.fits(quota)]
    return min(fitting, key=lambda space: space.leaves(quota), default=None)


def without(spaces: Iterable[Space], promised: Iterable[tuple[str, Quota]]) -> list[Space]:
    """What is left beside promises, each on the GPU of a UUID."""
    left = {space.uuid: space for space in spaces}
    for uuid, quota in promised:
        if uuid in left:
            left[uuid] = left[uuid].less(quota)
    return list(left.values())


@dataclass(frozen=True, slots=True)
class Line:
    """The queue as one server finds it: who is ahead, and the GPUs beside what is kept for those who are called.

    covered: this server is called itself, for so much. gpu: where its room is. kept: there are such promises to others,
    of which vgpud does not know.
    """

    spaces: Sequence[Space] = ()
    ahead: Sequence[Waiting] = ()
    covered: Quota | None = None
    gpu: str = ""
    kept: bool = False

    def must_wait(self, quota: Quota) -> bool:
        return not self._is_covered(quota) and room_for(quota, self.ahead, self.spaces) is None

    def where(self, quota: Quota) -> str | None:
        """The UUID of the GPU that it may have now. None: any, for nobody is ahead and nothing is promised."""
        if self._is_covered(quota):
            return self.gpu
        room = room_for(quota, self.ahead, self.spaces)
        return room.uuid if room and (self.ahead or self.kept) else None

    def _is_covered(self, quota: Quota) -> bool:
        mine = self.covered
        if mine is None or quota.where != mine.where:
            return False
        return quota.memory <= mine.memory and quota.cores <= mine.cores


def foretell(
    order: Sequence[Waiting], spaces: Sequence[Space], running: Sequence[Running], lifetimes: Sequence[float]
) -> dict[Waiting, Forecast]:
    """When each one's turn may come, from how long servers lived. Empty where too few have ended yet.

    Plays it out many times: each slice lives on as long as a server of its age did, drawn at random. Nobody else comes,
    and nobody leaves. The same question gets the same answer.
    """
    if len(lifetimes) < MIN_LIFETIMES:
        return {}
    chance, ended = random.Random(1), sorted(lifetimes)  # noqa: S311 (no secret)
    outlive = [_outlived(each.age, ended) for each in running]
    waits: dict[Waiting, list[float]] = {each: [] for each in order}
    begin = _seat(order, spaces)
    for _ in range(_SAMPLES):
        rests = [ended[_draw(first, len(ended), chance)] - age for first, age in outlive]
        turns = _play(order, begin, running, rests, ended, chance)
        for each in order:
            waits[each].append(turns.get(each, math.inf))
    return {each: Forecast(_quantile(found, 0.5), _quantile(found, 0.9)) for each, found in waits.items()}


def _quantile(values: list[float], part: float) -> float | None:
    value = sorted(values)[min(len(values) - 1, int(part * len(values)))]
    return None if math.isinf(value) else value


def _play(
    order: Sequence[Waiting],
    begin: _Seats,
    running: Sequence[Running],
    rests: Sequence[float],
    ended: Sequence[float],
    chance: random.Random,
) -> dict[Waiting, float]:
    ends = [(rests[number], number, each.gpu, each.quota) for number, each in enumerate(running)]
    heapq.heapify(ends)
    seated, free, keeps = begin[0], list(begin[1]), dict(begin[2])
    turns: dict[Waiting, float] = {}
    left = dict.fromkeys(order)

    def start(each: Waiting, at: int, now: float) -> None:
        turns[each] = now
        del left[each]
        end = now + ended[_draw(0, len(ended), chance)]
        heapq.heappush(ends, (end, len(running) + len(turns), at, each.quota))

    for each, at in seated:
        start(each, at, 0.0)
    keepers = {id(whose) for whose in keeps.values()}
    for _ in range(_ENDS_MAX):
        if not left or not ends:
            break
        now, _, at, quota = heapq.heappop(ends)
        free[at] = free[at].more(quota)
        offered = [at]
        while offered:
            at = offered.pop()
            for each in [keeps[at]] if at in keeps else list(left):
                if free[at].fits(each.quota):
                    free[at] = free[at].less(each.quota)
                    start(each, at, now)
                    # what was kept for it is for others now
                    kept_for_it = [kept for kept, whose in keeps.items() if whose is each]
                    offered += [at, *(kept for kept in kept_for_it if kept != at)]
                    for kept in kept_for_it:
                        del keeps[kept]
                    keepers.discard(id(each))
                    break
                if id(each) not in keepers and free[at].could_fit(each.quota):
                    keeps[at] = each
                    keepers.add(id(each))
                    break
    return turns


def _outlived(age: float, ended: Sequence[float]) -> tuple[int, float]:
    """The first that lived longer than this, and this; where hardly any did, as if it began anew."""
    first = bisect_right(ended, age)
    return (first, age) if len(ended) - first >= _LONGER_MIN else (0, 0.0)


def _draw(first: int, end: int, chance: random.Random) -> int:
    """One of first to end; `randrange` and `choice` take ten times as long, and it is asked for 40,000 times."""
    return first + int(chance.random() * (end - first))
