"""What the service knows and does: the one place that changes quotas of users and slices of theirs."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jupyter_vgpu.client import Client, DaemonError
from jupyter_vgpu.quota import Policy, Quota

from ..database import Change, Database, Metered
from ..hours import WEEK_HOURS, Measure, Window, hour_of, window_start
from ..limits import group_rules
from ..rules import Bounds, Entitlement, Rule, entitle, follow, of_groups
from .hub import HubApi, HubUser
from .meter import Meter, user_of
from .settings import Settings

log = logging.getLogger("vgpu.service")

Json = dict[str, Any]
METER_S = 10.0
KEEP_HOURS = 5 * WEEK_HOURS


class Refused(Exception):
    """What was asked can't be done; `status` is HTTP's word for why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Person:
    """A user with all that the service knows. entitlement None: the config computes it when a server starts."""

    name: str
    groups: tuple[str, ...]
    rule: Rule
    entitlement: Entitlement | None
    spent: Metered
    tenants: list[Json]


@dataclass(frozen=True, slots=True)
class State:
    """Everything, as of one moment. troubles: what could not be had, in words."""

    gpus: list[Json] = field(default_factory=list)
    tenants: list[Json] = field(default_factory=list)
    people: list[Person] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


class Manager:
    """Raises Refused, QuotaError, HubError, DatabaseError."""

    def __init__(self, settings: Settings, database: Database, node: Client, hub: HubApi) -> None:
        self.settings = settings
        self._database, self._node, self._hub = database, node, hub
        self._bounds = settings.bounds
        self._meter = Meter()
        self._changing = asyncio.Lock()

    # --- looking ---

    async def state(self) -> State:
        """What a page shows. A part that does not answer leaves its words, and the rest is shown."""
        troubles: list[str] = []
        gpus, tenants = await self._look_at_node(troubles)
        users, groups = await asyncio.gather(self._hub.users(), self._hub.groups())
        rules = await asyncio.to_thread(self._database.rules)
        since = window_start(Window(self.settings.window), datetime.now(UTC))
        metered = await asyncio.to_thread(self._database.metered, since)
        troubles += group_rules(groups.items())[1]
        people = [self._person(user, groups, rules, metered, tenants) for user in users]
        return State(gpus, tenants, sorted(people, key=lambda person: person.name), troubles)

    async def node_state(self) -> State:
        """GPUs and slices alone: what changes from second to second."""
        troubles: list[str] = []
        gpus, tenants = await self._look_at_node(troubles)
        return State(gpus, tenants, [], troubles)

    async def _look_at_node(self, troubles: list[str]) -> tuple[list[Json], list[Json]]:
        try:
            gpus = (await self._node.arequest("GET", "/api/gpus"))["gpus"]
            return gpus, (await self._node.arequest("GET", "/api/tenants"))["tenants"]
        except DaemonError as error:
            troubles.append(str(error))
            return [], []

    def _person(
        self,
        user: HubUser,
        groups: dict[str, Any],
        rules: dict[str, Rule],
        metered: dict[str, Metered],
        tenants: list[Json],
    ) -> Person:
        rule = rules.get(user.name, Rule())
        return Person(
            user.name,
            user.groups,
            rule,
            entitle(self._bounds, _group_rule(user, groups), rule) if self._bounds else None,
            metered.get(user.name, Metered()),
            [tenant for tenant in tenants if user_of(tenant["name"]) == user.name],
        )

    async def changes(self, limit: int | None = None) -> list[Change]:
        """The audit log, newest first."""
        return await asyncio.to_thread(self._database.changes, limit)

    # --- changing ---

    async def set_rule(self, user: str, rule: Rule, actor: str) -> list[str]:
        """Say this of a user from now on; running slices follow at once. Returns what did not, in words."""
        if not await self._hub.has_user(user):
            raise Refused(404, f"this hub has no user {user[:80]!r}")
        async with self._changing:
            before = await asyncio.to_thread(self._database.rule, user)
            await asyncio.to_thread(self._database.set_rule, user, rule, actor)
            return await self._follow(user, before, rule)

    async def _follow(self, user: str, before: Rule, after: Rule) -> list[str]:
        troubles: list[str] = []
        tenants = (await self._look_at_node(troubles))[1]
        groups = await self._hub.groups()
        users = {each.name: each for each in await self._hub.users()}
        group = _group_rule(users.get(user, HubUser(user)), groups)
        for tenant in tenants:
            bounds = self._bounds_of(tenant)
            if user_of(tenant["name"]) != user or bounds is None:
                continue
            old, new = (entitle(bounds, group, rule) for rule in (before, after))
            if quota := follow(_quota(tenant["quota"]), old, new):
                troubles += await self._resize(tenant, quota)
        return troubles

    def _bounds_of(self, tenant: Json) -> Bounds | None:
        """Of a running slice the hub has said the ceiling, whatever the config computes."""
        ceiling = _quota(tenant["ceiling"]) if tenant["ceiling"] else None
        if self._bounds:
            return Bounds(self._bounds.default, ceiling or self._bounds.ceiling, self._bounds.hours)
        return Bounds(ceiling, ceiling) if ceiling else None

    async def _resize(self, tenant: Json, quota: Quota) -> list[str]:
        try:
            await self._node.arequest("PATCH", _path(tenant["id"]), quota.as_json())
        except DaemonError as error:
            return [f"{tenant['name']} stays at {_quota(tenant['quota'])}: {error}"]
        return []

    async def resize(self, name: str, values: Json, actor: str) -> Json:
        """Change one running slice, under its ceiling. Returns it as it is now."""
        tenant = await self._tenant(name)
        old = _quota(tenant["quota"])
        try:
            resized: Json = await self._node.arequest("PATCH", _path(tenant["id"]), values)
        except DaemonError as error:
            raise Refused(error.status, str(error)) from error
        new = _quota(resized["quota"])
        await asyncio.to_thread(self._database.note, actor, name, "slice", str(old), str(new))
        return resized

    async def stop(self, name: str, actor: str) -> None:
        """Stop the server of a slice, as the hub does it."""
        tenant = await self._tenant(name)
        user, _, server = tenant["name"].partition("/")
        await self._hub.stop(user, server)
        await asyncio.to_thread(self._database.note, actor, name, "server", "running", "stopped")

    async def _tenant(self, name: str) -> Json:
        try:
            tenant: Json = await self._node.arequest("GET", _path(name))
        except DaemonError as error:
            raise Refused(error.status, str(error)) from error
        if user_of(tenant["name"]) is None:
            raise Refused(404, f"{name[:80]!r} is no server of this hub")
        return tenant

    # --- GPU-hours ---

    async def meter(self) -> None:
        """Count since the last call; called every METER_S seconds."""
        try:
            tenants = (await self._node.arequest("GET", "/api/tenants"))["tenants"]
        except DaemonError as error:
            log.warning("GPU-hours are not counted now: %s", error)
            return
        more = self._meter.look(tenants, time.monotonic())
        hour = hour_of(datetime.now(UTC))
        if more:
            await asyncio.to_thread(self._database.meter, hour, more)
        await asyncio.to_thread(self._database.forget_meter, hour - KEEP_HOURS)

    def spent(self, metered: Metered) -> float:
        """Hours as this hub counts them."""
        return metered.held if self.settings.measure == Measure.HELD else metered.used


def _group_rule(user: HubUser, groups: dict[str, Any]) -> Rule:
    return of_groups(group_rules((name, groups.get(name)) for name in user.groups)[0])


def _quota(values: Json) -> Quota:
    return Quota(int(values["memory"]), float(values["cores"]), Policy(values["policy"]))


def _path(key: str) -> str:
    return f"/api/tenants/{quote(key, safe='')}"
