"""What was asked for a moment ago, for pages that can't wait each for an answer of its own."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

log = logging.getLogger("vgpu.service")
T = TypeVar("T")


class Recent(Generic[T]):
    """Older than `fresh` seconds it is asked for again behind the answer's back; older than `stale` seconds it is not
    given any more. what: for the log."""

    def __init__(self, what: str, ask: Callable[[], Awaitable[T]], fresh: float, stale: float) -> None:
        self._what, self._ask, self._fresh, self._stale = what, ask, fresh, stale
        self._last: tuple[float, T] | None = None
        self._asking: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Raises what asking raises, where there is nothing recent."""
        at, value = self._last or (-math.inf, None)
        age = time.monotonic() - at
        if age > self._fresh and self._asking is None:
            self._asking = asyncio.create_task(self._refresh())
            self._asking.add_done_callback(self._done)
        if value is not None and age <= self._stale:
            return value
        assert self._asking is not None  # noqa: S101 (nothing is stale that is fresh)
        return await asyncio.shield(self._asking)

    def forget(self) -> None:
        """It has changed: also what is being asked for now may be of before."""
        self._last = self._asking = None

    async def _refresh(self) -> T:
        value = await self._ask()
        if asyncio.current_task() is self._asking:
            self._last = (time.monotonic(), value)
        return value

    def _done(self, task: asyncio.Task[T]) -> None:
        if task is self._asking:
            self._asking = None
        if not task.cancelled() and (error := task.exception()):
            log.warning("asking %s: %s", self._what, error)
