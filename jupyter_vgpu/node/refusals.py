"""Allocations that were refused, with what a person needs to do something about it. Pure: times come from outside."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

KEPT = 20
# A program that is refused frees what it cached and tries again: that is one event to a person.
SAME_WITHIN_S = 2.0
HOLDERS = 8


@dataclass(frozen=True, slots=True)
class Holder:
    """A process of the tenant, and the bytes that it held when another was refused."""

    pid: int
    pid_in_slice: int
    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Bytes asked and left. call: the CUDA function, None where the program came without the shim.

    first, time: when it was refused first and last, in seconds since 1970; `first` tells it from others. line: the
    process and its ancestors in the slice, nearest first, by their numbers there.
    """

    time: float
    process: Holder
    bytes: int
    free: int
    call: str | None
    holders: tuple[Holder, ...]
    times: int = 1
    first: float = 0.0
    line: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.first:
            object.__setattr__(self, "first", self.time)


def call_name(symbol: str) -> str:
    """The function as its documentation names it: cuMemAllocAsync_ptsz is cuMemAllocAsync."""
    return re.sub(r"(_v\d+)?(_ptds|_ptsz)?$", "", symbol)


class Refusals:
    """A tenant's last refusals, oldest first."""

    def __init__(self) -> None:
        self._kept: deque[Refusal] = deque(maxlen=KEPT)

    def __iter__(self) -> Iterator[Refusal]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, refusal: Refusal) -> None:
        """The same again within a moment is counted; of the guard's word and the shim's about one, the shim's stays."""
        if not self._kept or not _is_same(self._kept[-1], refusal):
            self._kept.append(refusal)
            return
        last = self._kept.pop()
        both = last.call and refusal.call
        told = refusal if refusal.call else last
        times = last.times + 1 if both else last.times
        self._kept.append(replace(told, time=refusal.time, times=times, first=last.first))


def _is_same(before: Refusal, after: Refusal) -> bool:
    if before.process.pid != after.process.pid or after.time - before.time > SAME_WITHIN_S:
        return False
    # the driver is asked for other amounts than CUDA
    return not before.call or not after.call or (before.call, before.bytes) == (after.call, after.bytes)
