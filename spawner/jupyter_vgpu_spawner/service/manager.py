"""What the service knows and does: the one place that changes quotas of users and slices of theirs."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from jupyter_vgpu.api import Json, Refused, checked_message
from jupyter_vgpu.client import MAINTENANCE_PATH, DaemonAway, DaemonError
from jupyter_vgpu.hours import LABEL as HOURS_LABEL
from jupyter_vgpu.hours import Balance, End
from jupyter_vgpu.quotas import Quota, QuotaError, is_mps, parse_cores, parse_memory, parse_policy

from ..database import Change, Database, DatabaseError, Metered
from ..fleet import Fleet, View
from ..hours import WEEK_HOURS, Measure, Window, hour_of, window_start
from ..limits import group_rules
from ..rules import (
    DEFAULT_LABEL,
    HUB_LABEL,
    WHOLE_LABEL,
    Bounds,
    Chosen,
    Entitlement,
    Rule,
    as_whole,
    cuts,
    entitle,
    follow,
    is_whole,
    of_groups,
)
from .hub import HubApi, HubError, HubUser
from .meter import Meter, user_of
from .orphans import Orphans
from .recent import Recent
from .settings import Settings

log = logging.getLogger("vgpu.service")
T = TypeVar("T")
Pick = Callable[[list[HubUser]], list[HubUser]]

METER_S = 10.0
STOP_AGAIN_S = 300.0
DATABASE_AWAY = "The database with the users' quotas and GPU-hours does not answer now."
SERVICE_ACTOR = "the service, for GPU-hours"
GROUP_ACTOR = "the service, as groups or quotas say now"
HUB_FRESH_S, HUB_STALE_S = 5.0, 60.0
"""Of a page. Thousands of users take the hub a second to tell of, and change seldom; a quota is set by asking anew."""
NODES_FRESH_S, NODES_STALE_S = 1.0, 2.0
"""Of a page: a thousand slices take the nodes a tenth of a second to tell of. What is changed here is seen at once."""
TREND_DAYS = 7
KEEP_HOURS = 5 * WEEK_HOURS


@dataclass(frozen=True, slots=True)
class Person:
    """A user with all that the service knows.

    entitlement None: the config computes it when a server starts. is_known False: the hub has no such user any more.
    """

    name: str
    groups: tuple[str, ...]
    rule: Rule
    entitlement: Entitlement | None
    spent: Metered
    tenants: list[Json]
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class State:
    """Everything, as of one moment; people: of `users` that there are those that were asked for.

    troubles: what could not be had, in words; away: nodes that don't answer, and why. wrong: what groups say and is no
    rule. is_partial: users or hours lack; is_blind: some of their slices do.
    """

    nodes: list[str] = field(default_factory=list)
    gpus: list[Json] = field(default_factory=list)
    tenants: list[Json] = field(default_factory=list)
    maintenance: dict[str, Json] = field(default_factory=dict)
    people: list[Person] = field(default_factory=list)
    users: int = 0
    troubles: list[str] = field(default_factory=list)
    is_partial: bool = False
    away: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    is_blind: bool = False

    @property
    def by_gpu(self) -> dict[str, list[Json]]:
        """Tenants by their GPU's UUID."""
        return _grouped(self.tenants, lambda tenant: tenant["gpu"]["uuid"])

    @property
    def by_user(self) -> dict[str, list[Json]]:
        """Tenants that servers hold, by the server's user."""
        return _grouped(self.tenants, user_of)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What running slices follow, as of one moment. rules None: they are to be read. changes: of them, until then."""

    users: Mapping[str, HubUser]
    groups: dict[str, Any]
    metered: Mapping[str, Metered]
    rules: Mapping[str, Rule] | None
    changes: int


def _grouped(tenants: Iterable[Json], key: Callable[[Json], str | None]) -> dict[str, list[Json]]:
    groups: dict[str, list[Json]] = {}
    for tenant in tenants:
        if (name := key(tenant)) is not None:
            groups.setdefault(name, []).append(tenant)
    return groups


class Manager:
    """Raises Refused, QuotaError, HubError, DatabaseError."""

    def __init__(self, settings: Settings, database: Database, fleet: Fleet, hub: HubApi) -> None:
        self.settings = settings
        self._database, self._fleet, self._hub = database, fleet, hub
        self._bounds = settings.bounds
        self._meter = Meter()
        self._uncounted: dict[int, dict[str, Metered]] = {}
        self._forgot_in = 0  # the hour in which old hours were forgotten last
        self._orphans = Orphans()
        self._stopping: dict[str, float] = {}  # by tenant, when the hub was asked last
        self._changing = asyncio.Lock()
        self._changes = 0  # of rules, so far
        self.recent = Recent("the hub", self._ask_hub, HUB_FRESH_S, HUB_STALE_S)
        self.looked = Recent("the nodes", fleet.look, NODES_FRESH_S, NODES_STALE_S)

    async def _ask_hub(self) -> tuple[list[HubUser], dict[str, Any]]:
        users, groups = await asyncio.gather(self._hub.users(), self._hub.properties())
        return users, groups

    # --- looking ---

    async def node_state(self) -> State:
        """GPUs and slices alone, for a page: what changes from second to second."""
        troubles: list[str] = []
        view = await self._look_at_nodes(troubles, self.looked.get)
        seen = (self.nodes, view.gpus, view.tenants, view.maintenance)
        return State(*seen, troubles=troubles, away=view.away, is_blind=bool(troubles or view.away))

    async def page_state(self, pick: Pick) -> State:
        """What a page shows, with the users that `pick` takes of all; of the nodes as of some moments ago."""
        return await self._state(self.looked.get, pick)

    async def state(self) -> State:
        """Everything as it is now. A part that does not answer leaves its words, and the rest is told."""
        return await self._state(self._fleet.look)

    async def _state(self, look: Callable[[], Awaitable[View]], pick: Pick | None = None) -> State:
        troubles: list[str] = []
        view = await self._look_at_nodes(troubles, look)
        blind = len(troubles)
        users, groups = await self._look_at_hub(troubles)
        rules = await self._ask_database(troubles, self._database.rules)
        names = {user.name for user in users}
        every = sorted([*users, *(HubUser(name) for name in rules if name not in names)], key=lambda user: user.name)
        picked = pick(every) if pick else every
        since = window_start(Window(self.settings.window), datetime.now(UTC))
        whose = [user.name for user in picked] if pick else None
        metered = await self._ask_database(troubles, self._database.metered, since, whose)
        partial = len(troubles) > blind
        held = _grouped(view.tenants, user_of)
        people = [self._person(user, groups, rules, metered, held, user.name in names) for user in picked]
        seen = (self.nodes, view.gpus, view.tenants, view.maintenance)
        wrong = self._wrong_groups(groups)
        return State(*seen, people, len(every), troubles, partial, view.away, wrong, bool(blind or view.away))

    def _wrong_groups(self, groups: dict[str, Any]) -> list[str]:
        """Groups whose property is no rule, or names a slice that there is not: it would give nothing, silently."""
        wrong = []
        for name, properties in groups.items():
            rules, words = group_rules([(name, properties)])
            wrong += words
            try:
                for rule in rules:
                    self._check_slices(rule)
            except QuotaError as error:
                wrong.append(f"group {name}: {error}")
        return wrong

    @property
    def nodes(self) -> list[str]:
        """Their names, as the config has them."""
        return list(self._fleet.configs)

    async def _look_at_nodes(self, troubles: list[str], look: Callable[[], Awaitable[View]]) -> View:
        try:
            view = await look()
        except DaemonError as error:
            troubles.append(str(error))
            return View()
        return view

    async def _look_at_hub(self, troubles: list[str]) -> tuple[list[HubUser], dict[str, Any]]:
        try:
            users, groups = await self.recent.get()
        except HubError as error:
            troubles.append(f"The users are not known now: {error}")
            return [], {}
        return users, groups

    async def _ask_database(
        self, troubles: list[str], ask: Callable[..., dict[str, T]], *arguments: Any
    ) -> dict[str, T]:
        try:
            return await asyncio.to_thread(ask, *arguments)
        except DatabaseError as error:
            log.error("%s", error)
            if DATABASE_AWAY not in troubles:
                troubles.append(DATABASE_AWAY)
            return {}

    def _person(
        self,
        user: HubUser,
        groups: dict[str, Any],
        rules: dict[str, Rule],
        metered: dict[str, Metered],
        held: dict[str, list[Json]],
        is_known: bool,
    ) -> Person:
        rule = rules.get(user.name, Rule())
        return Person(
            user.name,
            user.groups,
            rule,
            entitle(self._bounds, _group_rule(user, groups), rule) if self._bounds else None,
            metered.get(user.name, Metered()),
            held.get(user.name, []),
            is_known,
        )

    async def changes(self, limit: int | None = None) -> list[Change]:
        """The audit log, newest first."""
        return await asyncio.to_thread(self._database.changes, limit)

    # --- changing ---

    async def set_rule(self, name: str, rule: Rule, actor: str, expected: Rule | None = None) -> list[str]:
        """Say this of a user from now on; running slices follow at once. Returns what did not, in words.

        expected: what the actor saw; another's change since then is not written over.
        """
        self._check_slices(rule)
        user = await self._hub.user(name)
        if user is None and not rule.is_empty:
            raise Refused(404, f"this hub has no user {name[:80]!r}")
        groups = await self._hub.properties()
        async with self._changing:
            before = await asyncio.to_thread(self._database.rule, name)
            if expected not in (None, before):
                raise Refused(409, f"the quota of {name} was changed meanwhile: look at it as it is now, and try again")
            try:
                await asyncio.to_thread(self._database.set_rule, name, rule, actor)
            finally:
                self._changes += 1  # after it: who has read the old rule meanwhile has the old number too
            got = entitle(self._bounds, _group_rule(user, groups), rule) if self._bounds and user else None
            troubles = [f"{name}: {words}" for words in cuts(rule, got)] if got else []
            for tenant in (await self._look_at_nodes(troubles, self._fleet.tenants)).tenants:
                if user and user_of(tenant) == name:
                    try:
                        old = self._entitlement(tenant, user, groups, before).quota
                        troubles += await self._follow(tenant, self._entitlement(tenant, user, groups, rule), old)
                    except Refused as error:
                        troubles.append(str(error))
            self.looked.forget()
            return troubles

    def _check_slices(self, rule: Rule) -> None:
        known = self.settings.slices
        for key in rule.slices or ():
            if known and key not in known:
                raise QuotaError(f"slices: there is no {key[:40]!r}; this hub has: {', '.join(known)}")

    async def follow_all(self) -> None:
        """What changed elsewhere: groups, and quotas while a server was being started. Called now and then."""
        view = await self._fleet.servers()
        tenants = [tenant for tenant in view.tenants if user_of(tenant)]
        if not view.away:  # what is on a node that does not answer may go on there
            there = {tenant["id"] for tenant in tenants}
            self._stopping = {key: at for key, at in self._stopping.items() if key in there}
        if not tenants and not view.boards:
            return
        seen = await self._see()
        await self._remove_orphans([*tenants, *view.boards], seen)
        for tenant in tenants:
            try:
                await self._look_after(tenant, seen)
            except Exception:  # the others are looked after
                log.exception("looking after %s", tenant["name"])
            await asyncio.sleep(0)  # pages are answered in between

    async def _remove_orphans(self, servers: list[Json], seen: _Seen) -> None:
        """servers: slices, and boards of who has none."""
        mine = [server for server in servers if server["labels"].get(HUB_LABEL) == self.settings.hub]
        held = {key for user in seen.users.values() for key in user.slices}
        unsure = {name for user in seen.users.values() for name in user.unsure}
        for tenant in self._orphans.look(mine, held, unsure, time.monotonic()):
            log.warning("%s on %s has no server any more: its slice is removed", tenant["name"], tenant["node"])
            try:
                await self._fleet.ask(tenant, "DELETE")
            except DaemonError as error:  # and is tried again
                log.warning("the slice of %s on %s is not removed: %s", tenant["name"], tenant["node"], error)

    async def _see(self) -> _Seen:
        """For all tenants at once: asking for each would keep the hub busy with nothing else."""
        users, groups = await asyncio.gather(self._hub.users(active=True), self._hub.properties())
        since = window_start(Window(self.settings.window), datetime.now(UTC))
        metered = await asyncio.to_thread(self._database.metered, since)
        changes = self._changes
        try:
            rules = await asyncio.to_thread(self._database.rules)
        except ValueError:  # a row that can't be read is its own user's trouble alone
            log.exception("the users' quotas are read one by one")
            rules = None
        return _Seen({user.name: user for user in users}, groups, metered, rules, changes)

    async def _look_after(self, tenant: Json, seen: _Seen) -> None:
        user = seen.users.get(str(user_of(tenant)))
        if user is None:
            return
        async with self._changing:
            if seen.rules is None or seen.changes != self._changes:  # an admin was faster
                rule = await asyncio.to_thread(self._database.rule, user.name)
            else:
                rule = seen.rules.get(user.name, Rule())
            entitlement = self._entitlement(tenant, user, seen.groups, rule)
            for trouble in await self._follow(tenant, entitlement, actor=GROUP_ACTOR):
                log.warning("%s", trouble)
        spent = self.spent(seen.metered.get(user.name, Metered()))
        balance = Balance(spent, entitlement.hours, self.settings.grace)
        if self.settings.end == End.STOP:
            await self._stop_if_spent(tenant, balance)
        await self._tell(tenant, balance)

    async def _tell(self, tenant: Json, balance: Balance) -> None:
        """Who is in the slice sees it there."""
        label = balance.as_label(self.settings.warnings, End(self.settings.end))
        if label != tenant["labels"].get(HOURS_LABEL, ""):
            await self._fleet.ask(tenant, "PATCH", "/labels", {HOURS_LABEL: label or None})

    async def _stop_if_spent(self, tenant: Json, balance: Balance) -> None:
        asked = self._stopping.get(tenant["id"])
        if not balance.is_spent or (asked is not None and time.monotonic() - asked < STOP_AGAIN_S):
            return
        self._stopping[tenant["id"]] = time.monotonic()
        log.info("%s is stopped: %s", tenant["name"], balance)
        if asked is None:
            await self.stop(tenant["name"], SERVICE_ACTOR)
        else:  # it is in the log already
            await self._stop(tenant)

    def _entitlement(self, tenant: Json, user: HubUser, groups: dict[str, Any], rule: Rule) -> Entitlement:
        bounds = _bounds_of(tenant, self.settings.hours, self.settings.most_hours)
        return entitle(bounds, _group_rule(user, groups), rule)

    async def _follow(
        self, tenant: Json, after: Entitlement, before: Quota | None = None, actor: str = ""
    ) -> list[str]:
        """before: what the user might have until now, for a slice that does not say. actor: who is to be in the log,
        where nobody is yet."""
        # an admin may have given this one slice more, or less: that stays until what the user may have changes
        if is_whole(tenant["labels"], after.quota):
            return []
        try:
            tenant = await self._fleet.ask(tenant, "GET") | {"node": tenant["node"]}  # as it is now
            return await self._follow_now(tenant, after, before, actor)
        except DaemonError as error:
            return [f"{tenant['name']} stays as it is for now: {error}"]  # and is tried again

    async def _follow_now(self, tenant: Json, after: Entitlement, before: Quota | None, actor: str) -> list[str]:
        held, known, troubles = Quota.from_json(tenant["quota"]), is_whole(tenant["labels"], after.quota), []
        if known is False or (known is None and before not in (None, after.quota)):
            chosen = Chosen.told(tenant["labels"]) or Chosen.of(held, before or after.quota)
            quota = follow(held, chosen, after)
            try:
                if quota and actor:  # nothing is done that is not in the log
                    await asyncio.to_thread(self._database.note, actor, tenant["name"], "slice", str(held), str(quota))
                if quota:
                    await self._fleet.ask(tenant, "PATCH", body=quota.as_json())
            except DaemonAway:
                raise
            except DaemonError as error:
                troubles = [f"{tenant['name']} stays at {held}: {error}", *await self._cut(tenant, held, quota or held)]
                if actor:
                    refused = (actor, tenant["name"], "slice", str(quota), f"refused: {held}")
                    await asyncio.to_thread(self._database.note, *refused)
            if quota is None and after.quota and not (actor or is_mps(held.model)) and _is_less(held, after.quota):
                troubles = [f"{tenant['name']} stays at {held}, the smaller slice that its user chose"]
            if after.quota is None:
                troubles = [f"{tenant['name']} keeps its slice of {held} until its server stops"]
        await self._fleet.ask(tenant, "PATCH", "/labels", {WHOLE_LABEL: as_whole(after.quota)})
        return troubles

    async def _cut(self, tenant: Json, held: Quota, quota: Quota) -> list[str]:
        """Where there is no room for more of one, less of the other holds all the same."""
        less = replace(quota, memory=min(held.memory, quota.memory), cores=min(held.cores, quota.cores))
        if less == held:
            return []
        try:
            await self._fleet.ask(tenant, "PATCH", body=less.as_json())
        except DaemonAway:
            raise
        except DaemonError as error:
            return [f"{tenant['name']} could not be cut to {less}: {error}"]
        return [f"{tenant['name']} is cut to {less}"]

    async def resize(self, name: str, values: Json, actor: str) -> Json:
        """Change one running slice, under its ceiling. Returns it as it is now."""
        tenant = await self._tenant(name)
        old = Quota.from_json(tenant["quota"])
        wanted = replace(
            old,
            memory=parse_memory(values.get("memory", old.memory)),
            cores=parse_cores(values.get("cores", old.cores)),
            policy=parse_policy(values.get("policy", old.policy)),
        )
        async with self.noted(actor, name, "slice", str(old), str(wanted)):
            try:
                resized: Json = await self._fleet.ask(tenant, "PATCH", body=values)
            except DaemonError as error:
                raise Refused(error.status, str(error)) from error
        return resized

    async def set_maintenance(self, message: str, closed: bool, actor: str, node: str = "") -> list[str]:
        """Tell everybody who has a slice on a node, or on any; closed: and give no new ones there.

        Returns where that was not done, in words. Raises Refused where nothing was.
        """
        words = checked_message(message) + (" (no new slices)" if closed else "")
        return await self._maintain(actor, words, node, "PUT", {"message": message, "closed": closed})

    async def end_maintenance(self, actor: str, node: str = "") -> list[str]:
        """All is as usual again. Returns and raises as set_maintenance does."""
        return await self._maintain(actor, "over", node, "DELETE", None)

    async def _maintain(self, actor: str, words: str, node: str, method: str, body: Json | None) -> list[str]:
        if node and node not in self.nodes:
            raise Refused(404, f"this hub has no node {node[:60]!r}; it has: {', '.join(self.nodes)}")
        wrong: dict[str, Refused] = {}
        wanted = [node] if node else self.nodes
        for name in wanted:
            try:
                async with self.noted(actor, name, "maintenance", "", words):
                    await self._ask(name, method, MAINTENANCE_PATH, body)
            except Refused as error:
                wrong[name] = error
        said = [f"{name}: {error}" if len(self.nodes) > 1 else str(error) for name, error in wrong.items()]
        if len(wrong) == len(wanted):
            raise Refused(max(error.status for error in wrong.values()), "; ".join(said))
        return said

    async def _ask(self, node: str, method: str, path: str, body: Json | None) -> None:
        try:
            await self._fleet.request(node, method, path, body)
        except DaemonError as error:
            raise Refused(error.status, str(error)) from error

    async def stop(self, name: str, actor: str, shown: str = "") -> None:
        """Stop the server of a slice, as the hub does it. shown: the slice's id as the actor saw it; no other's is."""
        tenant = await self._tenant(name)
        if shown not in ("", tenant["id"]):
            raise Refused(409, f"{name} was started anew meanwhile: look at it as it is now")
        async with self.noted(actor, name, "server", "running", "stopped"):
            await self._stop(tenant)

    async def _stop(self, tenant: Json) -> None:
        user, _, server = tenant["name"].partition("/")
        await self._hub.stop(user, server)

    @asynccontextmanager
    async def noted(self, actor: str, name: str, field: str, old: str, new: str) -> AsyncIterator[None]:
        """Nothing is done that is not in the log: first it is noted, and noted again if it was refused."""
        await asyncio.to_thread(self._database.note, actor, name, field, old, new)
        try:
            yield
        except (Refused, HubError):
            await asyncio.to_thread(self._database.note, actor, name, field, new, f"refused: {old}")
            raise
        finally:
            self.looked.forget()

    async def _tenant(self, name: str) -> Json:
        try:
            tenant = await self._fleet.find(name)
        except DaemonError as error:
            raise Refused(error.status, str(error)) from error
        if user_of(tenant) is None:
            raise Refused(404, f"{name[:80]!r} is no server of this hub")
        return tenant

    # --- GPU-hours ---

    async def meter(self) -> None:
        """Count since the last call; called every METER_S seconds. What could not be written waits for the next."""
        view = await self._fleet.tenants()
        hour = hour_of(datetime.now(UTC))
        counted = self._uncounted.setdefault(hour, {})
        for user, more in self._meter.look(view.tenants, time.monotonic(), view.away).items():
            counted[user] = counted.get(user, Metered()) + more
        for when in sorted(self._uncounted):
            await asyncio.to_thread(self._database.meter, when, self._uncounted[when])
            del self._uncounted[when]
        if hour != self._forgot_in:
            await asyncio.to_thread(self._database.forget_meter, hour - KEEP_HOURS)
            self._forgot_in = hour

    async def trends(self, users: Iterable[str]) -> dict[str, list[float]]:
        """GPU-hours of each of the last TREND_DAYS days (UTC), today last; of who has none, nothing."""
        today = hour_of(datetime.now(UTC)) // 24
        first = today - TREND_DAYS + 1
        days = await asyncio.to_thread(self._database.by_day, first, users)
        return {
            user: [self.spent(found.get(day, Metered())) for day in range(first, today + 1)]
            for user, found in days.items()
        }

    def is_low(self, person: Person) -> bool:
        """Few of the GPU-hours are left, or none."""
        allowed = person.entitlement.hours if person.entitlement else None
        return Balance(self.spent(person.spent), allowed).is_low(self.settings.warnings)

    def spent(self, metered: Metered) -> float:
        """Hours as this hub counts them."""
        return metered.held if self.settings.measure == Measure.HELD else metered.used


def _group_rule(user: HubUser, groups: dict[str, Any]) -> Rule:
    return of_groups(group_rules((name, groups.get(name)) for name in user.groups)[0])


def _is_less(held: Quota, whole: Quota) -> bool:
    return held.memory < whole.memory or held.cores < whole.cores


def _bounds_of(tenant: Json, hours: float | None, most_hours: float | None) -> Bounds:
    """As the spawner said when it opened the slice, for it alone knows what the config computes. Raises Refused."""
    try:
        default = Quota.from_json(json.loads(tenant["labels"][DEFAULT_LABEL]))
        return Bounds(default, Quota.from_json(tenant["ceiling"]), hours, most_hours=most_hours)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(409, f"{tenant['name']} does not say what its user may have: no spawner made it") from error
