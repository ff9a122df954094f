"""What a tenant was refused, as it happens: the shim tells the call, the page the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator

from . import processes
from .page import PageState, ProcessRow, SlicePage
from .refusals import HOLDERS, SAME_WITHIN_S, Holder, Refusal, Refusals, call_name

PAUSE_S = 0.05  # each is looked into: a program that is refused all the time must not cost the others


def holder_of(row: ProcessRow) -> Holder:
    """Its numbers and bytes, and its name by /proc."""
    return Holder(row.pid, row.pid_inside, processes.name(row.pid), row.memory)


class RefusalWatch:
    """One tenant's. Iterates over its last refusals, oldest first."""

    def __init__(self, page: SlicePage) -> None:
        self._page = page
        self._kept = Refusals()
        self._seen = page.refusals
        self._noted = 0.0
        self._recall()

    def __iter__(self) -> Iterator[Refusal]:
        return iter(self._kept)

    def _recall(self) -> None:
        """The last one, where it happened while no daemon looked."""
        state = self._page.read()
        there = any(row.pid == state.refused_pid for row in state.processes)  # else its number may be another's
        if there and state.refused_at_ns > state.sampled_at_ns:
            at = state.refused_at_ns / 1e9
            self._keep(state, state.refused_pid, None, state.refused_bytes, at, state.refused_free)

    def tell(self, pid: int, symbol: str | None, size: int) -> None:
        """The shim's word, or (symbol None) the page's alone: who held what at that moment."""
        if time.monotonic() - self._noted < PAUSE_S:
            return
        self._noted = time.monotonic()
        state = self._page.read()
        self._seen = state.refusals
        on_page = state.refused_pid == pid and time.time() - state.refused_at_ns / 1e9 < SAME_WITHIN_S
        if not on_page and symbol is None:
            return
        at = state.refused_at_ns / 1e9 if on_page else time.time()
        # CUDA may ask the driver for more than the program asked CUDA for
        free = state.refused_free if on_page else max(0, state.memory_quota - state.memory_used)
        self._keep(state, pid, symbol, size, at, free)

    def _keep(self, state: PageState, pid: int, symbol: str | None, size: int, at: float, free: int) -> None:
        rows = sorted(state.processes, key=lambda row: -row.memory)
        refused = next((row for row in rows if row.pid == pid), ProcessRow(pid, processes.inside(pid), 0, 0))
        self._kept.add(
            Refusal(
                time=at,
                process=holder_of(refused),
                bytes=size,
                free=free,
                call=symbol and call_name(symbol),
                holders=tuple(holder_of(row) for row in rows[:HOLDERS]),
                line=processes.line_inside(pid),
            )
        )

    def look(self) -> None:
        """Of programs without the shim the page alone tells."""
        if self._page.refusals != self._seen:
            state = self._page.read()
            self.tell(state.refused_pid, None, state.refused_bytes)
