"""Slices that no server is in any more: its node was away when the server ended, or the hub died in between. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from jupyter_vgpu.api import Json

ORPHAN_S = 60.0
"""So long a slice has to be seen without a server: one that comes or goes is for moments."""


class Orphans:
    """Remembers since when each slice has been without a server."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def look(self, slices: Iterable[Json], held: Collection[str], unsure: Collection[str], now: float) -> list[Json]:
        """Those that are to be removed.

        slices: that this hub made. held: ids of those that the hub's servers say are theirs. unsure: names of servers
        that are on their way, or of which nothing is said; a slice of such a name may be theirs. now: seconds of a
        clock that only goes forward.
        """
        lost = [each for each in slices if each["id"] not in held and each["name"] not in unsure]
        self._since = {each["id"]: self._since.get(each["id"], now) for each in lost}
        return [each for each in lost if now - self._since[each["id"]] >= ORPHAN_S]
