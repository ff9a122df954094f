"""Slices that no server is in any more: its node was away when the server ended, or the hub died in between. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from jupyter_vgpu.api import Json

ORPHAN_S = 60.0
"""So long a slice has to be seen without a server: one that comes or goes is for moments."""


class Orphans:
    """Remembers since when each slice has been without a server."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def look(self, tenants: Iterable[Json], servers: Mapping[str, Collection[str] | None], now: float) -> list[Json]:
        """Those that are to be removed. now: seconds of a clock that only goes forward.

        tenants: the slices of users, by the names that their servers' spawners gave. servers: names of a user's
        servers, by user; None: not known. Who is not in it has none.
        """
        newest: dict[str, Json] = {}
        every = list(tenants)
        for tenant in sorted(every, key=lambda tenant: str(tenant["created"])):
            newest[tenant["name"]] = tenant
        lost = [tenant for tenant in every if tenant is not newest[tenant["name"]] or not _has_server(tenant, servers)]
        self._since = {tenant["id"]: self._since.get(tenant["id"], now) for tenant in lost}
        return [tenant for tenant in lost if now - self._since[tenant["id"]] >= ORPHAN_S]


def _has_server(tenant: Json, servers: Mapping[str, Collection[str] | None]) -> bool:
    user, _, server = tenant["name"].partition("/")
    names = servers.get(user, ())
    return names is None or server in names
