"""A tenant's open ends in the daemon's process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from .join import JoinServer
from .page import SlicePage
from .refusal_watch import RefusalWatch
from .shim_tier import ShimTier


class Live:
    """Sockets, files and watches, as long as the tenant is served."""

    def __init__(self, page: SlicePage) -> None:
        self.page = page
        self.join: JoinServer | None = None
        self.stop_api: Callable[[], None] = lambda: None
        self.listeners: list[int] = []
        self.unguarded: list[int] = []  # of those: what the guard has not taken yet
        self.untold = False  # the guard has not heard of it, or of its newest quota
        self.refusals = RefusalWatch(page)
        self.unknown: set[str] = set()
        self.until = -1
        self.active_at = time.time()  # work of it was on the GPU then, or nobody knows of earlier

    def close(self) -> None:
        self.stop_api()
        if self.until >= 0:
            asyncio.get_running_loop().remove_reader(self.until)
            os.close(self.until)
        if self.join:
            self.join.close()
        for fd in self.listeners:
            os.close(fd)
        self.page.close()

    def forget(self, listener: int) -> None:
        self.listeners.remove(listener)
        if listener in self.unguarded:
            self.unguarded.remove(listener)
        os.close(listener)

    @property
    def shim(self) -> ShimTier | None:
        """What holds it, where the guard does not."""
        return self.join.shim if self.join else None

    def refresh(self) -> None:
        """The page, where the daemon itself writes it."""
        if self.join:
            self.join.refresh()
