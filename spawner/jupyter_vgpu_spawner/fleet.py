"""All nodes of a hub as one: what they have together, and whom a slice's question goes to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from jupyter_vgpu.client import Client, DaemonAway, DaemonError, board_path, gpus_path, tenant_path
from jupyter_vgpu.quotas import Quota

from .choices import why_not
from .nodes import ONLY, NodeConfig, Packing, in_turn
from .rules import HUB_LABEL
from .turns import Space

Json = dict[str, Any]
log = logging.getLogger("vgpu.nodes")
SLOW_S = 1.0
REST_S = 5.0
"""A node that kept the asker waiting is not asked again for so long: one that is down answers nobody, slowly."""


@dataclass(frozen=True)
class View:
    """What the nodes have, as of one moment. Each GPU and tenant says its `node`.

    boards: of servers without a slice. maintenance: what is said on a node, by node; with the GPUs. away: why who does
    not answer.
    """

    gpus: list[Json] = field(default_factory=list)
    tenants: list[Json] = field(default_factory=list)
    boards: list[Json] = field(default_factory=list)
    maintenance: dict[str, Json] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)

    @cached_property
    def spaces(self) -> list[Space]:
        return [Space.from_json(gpu) for gpu in self.gpus]

    @property
    def names(self) -> set[str]:
        """Of the slices that there are."""
        return {tenant["name"] for tenant in self.tenants}

    @property
    def names_on_gpus(self) -> set[str]:
        """The same, where only the GPUs were asked for: as of the moment that their room is of."""
        return {name for gpu in self.gpus for name in gpu["tenants"]}


class Fleet:
    """All nodes of a hub as one. Raises DaemonError where none of them answers as it should."""

    def __init__(self, configs: Sequence[NodeConfig]) -> None:
        self.configs = {config.name: config for config in configs}
        self._clients = {config.name: config.client() for config in configs}
        self._resting: dict[str, tuple[float, Exception]] = {}

    @property
    def home(self) -> str:
        """The node of servers without a GPU: the first."""
        return next(iter(self.configs))

    def known_as(self, name: str) -> str:
        """A node that was the only one, when it had no name, is the first now."""
        return self.home if name == ONLY and ONLY not in self.configs else name

    def client(self, name: str) -> Client:
        """Raises DaemonError where the config has no such node any more."""
        if name not in self._clients:
            raise DaemonError(404, f"this hub has no node {name!r} any more; it has: {', '.join(self._clients)}")
        return self._clients[name]

    async def gpus(self) -> View:
        return await self._look("gpus")

    async def _gpus_and(self, name: str) -> View:
        """The GPUs, and of the tenants those of this name, by one request to each node."""
        return await self._look("gpus", "tenants", paths=[gpus_path(name)])

    async def tenants(self) -> View:
        return await self._look("tenants")

    async def look(self) -> View:
        # in this order: whose slice comes in between is still waited for, and its room is not free
        return await self._look("tenants", "gpus")

    async def servers(self) -> View:
        """Tenants, and boards of who has no slice."""
        return await self._look("tenants", "boards")

    async def find(self, key: str) -> Json:
        """A tenant by name or id; of two of one name the newer. Raises DaemonError."""
        answers = await self.every("GET", tenant_path(key))
        found = [answer | {"node": name} for name, answer in answers.items() if isinstance(answer, dict)]
        if not found:  # one that is away may have it
            raise max(answers.values(), key=lambda error: int(error.status))
        return max(found, key=lambda tenant: str(tenant["created"]))

    async def place(self, view: View, quota: Quota, body: Json, packing: Packing) -> Json:
        """A new tenant, on the first node that has room; the node itself has the last word. Raises DaemonError.

        view: the GPUs, as they were last seen. body: as vgpud's API has it; with a `gpu`, only there.
        """
        names = list(self.configs)
        if len(names) > 1:
            gpus = [gpu for gpu in view.gpus if body.get("gpu") in (None, gpu["uuid"])]
            names = in_turn(quota, gpus, names, packing)
            if not names:
                raise DaemonError(409, why_not(quota, gpus, bool(view.away)))
        for name in names:
            try:
                made: Json = await self.request(name, "POST", "/api/tenants", body)
            except DaemonError as error:
                if name == names[-1] or not (error.status == 409 or isinstance(error, DaemonAway)):
                    raise
                log.warning("no slice for %s on %s, the next is asked: %s", body["name"], name, error)
            else:
                break
        return made | {"node": name}

    async def gpus_without(self, name: str, hub: str) -> View:
        """The GPUs, once tenants of a name that this hub made are removed, wherever they are; there may be none.

        Of a node that is away, or that does not do it, the service removes them later. Raises DaemonError.
        """
        view = await self._gpus_and(name)
        left = [tenant for tenant in view.tenants if tenant["labels"].get(HUB_LABEL, hub) == hub]
        for tenant in left:
            try:
                await self.ask(tenant, "DELETE")
            except DaemonError as error:
                log.warning("the slice of %s on %s is not removed: %s", name, tenant["node"], error)
        return await self._gpus_and(name) if left else view

    async def ask(self, tenant: Mapping[str, Any], method: str, what: str = "", body: Json | None = None) -> Any:
        """Something of a tenant, or of a board, on its own node. what: such as `/labels`. Raises DaemonError."""
        path = tenant_path if "quota" in tenant else board_path
        return await self.request(tenant["node"], method, path(tenant["id"]) + what, body)

    async def every(self, method: str, path: str, body: Json | None = None) -> dict[str, Any]:
        """The same of each node: answers by node, a DaemonError for one that did not do it."""
        answers = await asyncio.gather(
            *(self.request(name, method, path, body) for name in self._clients), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, DaemonError):
                raise answer
        return dict(zip(self._clients, answers, strict=True))

    async def _look(self, *whats: str, paths: Sequence[str] = ()) -> View:
        """paths: where that is told; by default each in its own place."""
        view, first = View(), None
        asked = paths or [f"/api/{what}" for what in whats]
        looks = await asyncio.gather(*(self._look_at(name, whats, asked) for name in self._clients))
        seen: set[str] = set()
        for name, found in zip(self._clients, looks, strict=True):
            if isinstance(found, DaemonError):
                first = first or found
                view.away[name] = str(found)
                continue
            for what in whats:
                # one daemon that has two names in the config is there once
                rows = [row | {"node": name} for row in found[what] if _key(row) not in seen]
                seen |= {_key(row) for row in rows}
                getattr(view, what).extend(rows)
            if said := found.get("maintenance"):
                view.maintenance[name] = said
        if first and len(view.away) == len(self._clients):
            raise first
        return view

    async def _look_at(self, name: str, whats: Iterable[str], paths: Iterable[str]) -> Json | DaemonError:
        found: Json = {}
        try:
            for path in paths:
                found |= await self.request(name, "GET", path)
        except DaemonError as error:
            return error
        if lacking := [what for what in whats if what not in found]:
            return DaemonError(501, f"vgpud of node {name!r} does not tell of {lacking[0]}: it is older than this hub")
        return found

    async def request(self, name: str, method: str, path: str, body: Json | None = None) -> Any:
        """Of one node. Raises DaemonError."""
        client, asked = self.client(name), time.monotonic()
        until, why = self._resting.get(name, (0.0, None))
        if why and asked < until:
            raise DaemonAway(client.where, why)
        if why:  # one looks whether it is back, and the others need not
            self._resting[name] = (asked + REST_S, why)
        try:
            answer = await client.arequest(method, path, body)
        except DaemonAway as error:
            now = time.monotonic()
            if now - asked > SLOW_S:
                self._resting[name] = (now + REST_S, error.why)
            raise
        except DaemonError:  # a no is an answer too
            self._resting.pop(name, None)
            raise
        self._resting.pop(name, None)
        return answer


def _key(row: Json) -> str:
    return str(row.get("uuid") or row["id"])


@lru_cache(maxsize=4)
def open_fleet(configs: tuple[NodeConfig, ...]) -> Fleet:
    """One for all spawners: who is away is remembered once."""
    return Fleet(configs)
