"""The queue at work: calls who is next, starts their servers, and tells where everybody stands."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from jupyter_vgpu.api import Json, Refused
from jupyter_vgpu.quotas import Quota
from jupyter_vgpu.turn import Stage

from ..choices import why_closed
from ..fleet import Fleet, View
from ..limits import group_share
from ..queue_store import Entry, QueueStore, promised
from ..turns import Forecast, Running, Space, Waiting, foretell, in_order, is_possible, loads, seat, without
from .hub import HubApi, HubError, HubUser
from .meter import user_of
from .recent import Recent
from .words import say_when

log = logging.getLogger("vgpu.service")

TICK_S = 2.0
CALL_S = 600.0
"""So long a called server's room is kept, for a user who has to stop another server first."""
TRY_AGAIN_S = 10.0
FORETELL_S = 10.0
ENDED_S = 24 * 3600.0
"""So long the words for who got no GPU are kept."""
KNOWN_S, KNOWN_AT_ONCE = 20.0, 5
GROUPS_FRESH_S, GROUPS_STALE_S = 5.0, 60.0
STARTS_MAX = 4
"""At once: each holds a connection to the hub for as long as the hub waits for the server."""
REFUSED_MAX = 5
_NOT_NOW = (429, 503, 599)
_BUSY = "Your server runs without a GPU: stop it, and it starts again with one."
_PASSED = "its room was kept for ten minutes while your server ran without a GPU. Choose again when you can stop it."
_WITHOUT = "it was started without a GPU, for you may have none now."
_REMOVED = "an admin took it out of the queue."
_FAILED = "it was started with the GPU and ended before it was ready. The hub's log says more."


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one entry: number 1 is next; 0: it is called, or has ended. forecast None: nothing can be told.

    closed: why no new slices are given now; empty: they are.
    """

    entry: Entry
    number: int = 0
    forecast: Forecast | None = None
    is_possible: bool = True
    closed: str = ""


class Dispatcher:
    """Raises DaemonError, HubError, DatabaseError.

    recent: the hub's users, and the properties of its groups. looked: the nodes. Both are for pages, which are many.
    """

    def __init__(
        self,
        store: QueueStore,
        fleet: Fleet,
        hub: HubApi,
        recent: Recent[tuple[list[HubUser], dict[str, Any]]],
        looked: Recent[View],
    ) -> None:
        self._store, self._fleet, self._hub, self._recent, self._looked = store, fleet, hub, recent, looked
        self._groups = Recent("the hub for its groups", hub.groups, GROUPS_FRESH_S, GROUPS_STALE_S)
        self._alive: dict[str, Json] = {}  # slices of users, as last seen
        self._starting: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tried: dict[tuple[str, str], float] = {}
        self._known: dict[str, float] = {}  # users who wait, and when they were known to be users
        # by a call of a server: the hub took its start. By a wait: how often its start was refused.
        self._asked: set[tuple[str, str, float]] = set()
        self._refused: dict[tuple[str, str, float], int] = {}
        self._starts = asyncio.Semaphore(STARTS_MAX)
        self._foretelling = asyncio.Lock()
        self._foretold: tuple[float, frozenset[Waiting], dict[Waiting, Forecast]] = (0.0, frozenset(), {})

    # --- looking ---

    async def standings(self, user: str | None = None) -> list[Standing]:
        """Of all in the queue, or of one user's servers: first who is called, then who is next."""
        entries = await asyncio.to_thread(self._store.entries)
        if not any(user in (None, entry.waiting.user) for entry in entries):
            return []
        view = await self._looked.get()
        order = await self._order(entries, view)
        forecasts = await self._foretell(order, entries, view)
        by_waiting = {entry.waiting: entry for entry in entries}
        prospects = {quota: _prospect(quota, view) for quota in {each.quota for each in order}}
        found = [Standing(entry) for entry in entries if entry.stage != Stage.WAITING]
        for number, each in enumerate(order, 1):
            found.append(Standing(by_waiting[each], number, forecasts.get(each), *prospects[each.quota]))
        return [each for each in found if user in (None, each.entry.waiting.user)]

    async def note(self, standings: Sequence[Standing]) -> None:
        """Where they stand, for the spawn page. What it says there already is not written again."""
        told = {each.entry.key: (each.number, say_when(each.forecast)) for each in standings if each.number}
        known = {each.entry.key: (each.entry.number, each.entry.when) for each in standings}
        if changed := {key: said for key, said in told.items() if known[key] != said}:
            await asyncio.to_thread(self._store.note_standings, changed)

    async def servers(self, user: str) -> dict[str, bool]:
        """A user's servers, as the hub has them: see HubApi.servers."""
        return await self._hub.servers(user)

    async def ready(self, user: str) -> dict[str, bool]:
        """Of `servers` those that run, as of some moments ago: what all pages share."""
        users, _ = await self._recent.get()
        return {name: True for each in users if each.name == user for name in each.ready}

    async def stage(self, user: str, server: str) -> Stage:
        """Of a server in the queue. Raises Refused where it is not there."""
        entry = await asyncio.to_thread(self._store.entry, user, server)
        if entry is None:
            raise _not_there(user, server)
        return entry.stage

    async def since(self) -> list[float]:
        """When those who wait asked, in seconds since 1970."""
        entries = await asyncio.to_thread(self._store.entries)
        return [entry.waiting.since for entry in entries if entry.stage == Stage.WAITING]

    async def _order(self, entries: list[Entry], view: View) -> list[Waiting]:
        groups: dict[str, list[str]] = {}
        shares = {}
        for group in await self._groups.get():
            shares[group.name] = group_share(group.properties)
            for member in group.users:
                groups.setdefault(member, []).append(group.name)
        held = [(user, Quota.from_json(tenant["quota"])) for tenant in view.tenants if (user := user_of(tenant))]
        # who is called holds the room already
        held += [(entry.waiting.user, entry.waiting.quota) for entry in promised(entries, view.names)]
        waiting = [entry.waiting for entry in entries if entry.stage == Stage.WAITING]
        asked = {name: groups.get(name, ()) for name in {each.user for each in waiting} | {user for user, _ in held}}
        return in_order(waiting, loads(held, asked, shares, view.spaces), time.time())

    async def _foretell(self, order: list[Waiting], entries: list[Entry], view: View) -> Mapping[Waiting, Forecast]:
        async with self._foretelling:  # one for all who look
            at, of, found = self._foretold
            if of == frozenset(order) and time.monotonic() - at < FORETELL_S:
                return found
            lifetimes = await asyncio.to_thread(self._store.lifetimes)
            found = await asyncio.to_thread(foretell, order, _free(view, entries), _running(view), lifetimes)
            self._foretold = (time.monotonic(), frozenset(order), found)
            return found

    # --- changing ---

    async def leave(self, user: str, server: str) -> None:
        """Take a server out. Raises Refused where it does not wait."""
        if not await asyncio.to_thread(self._store.leave, user, server):
            raise _not_there(user, server)

    async def remove(self, user: str, server: str) -> None:
        """Take a server out, so that its user is told; one that waits no more is forgotten. Raises Refused."""
        for _ in range(3):  # it may be called, or told something, meanwhile
            entry = await asyncio.to_thread(self._store.entry, user, server)
            if entry is None or entry.stage == Stage.ENDED or self._is_being_started(entry):
                break
            if await self._move(entry, Stage.ENDED, _REMOVED):
                return
        await self.leave(user, server)

    def _is_being_started(self, entry: Entry) -> bool:
        """Then it may have its GPU all the same."""
        return entry.key in self._starting or _call_of(entry) in self._asked

    async def tick(self) -> None:
        """Called every TICK_S seconds."""
        view = await self._fleet.tenants()
        await self._note_ends(view)
        entries = await asyncio.to_thread(self._store.entries)
        gone = await self._gone(entries)
        for entry in entries:
            try:
                await self._look_after(entry, view.names, gone)
            except HubError as error:  # the others are looked after
                log.warning("looking after %s: %s", entry.name, error)
        # the node second: whose slice came meanwhile is in it, and holds no room twice
        entries = await asyncio.to_thread(self._store.entries)
        self._asked &= {_call_of(entry) for entry in entries}
        waits = {_wait_of(entry) for entry in entries}
        self._refused = {wait: count for wait, count in self._refused.items() if wait in waits}
        if entries:
            await self._call(entries, await self._fleet.look())

    async def _note_ends(self, view: View) -> None:
        there = {tenant["id"]: tenant for tenant in view.tenants if user_of(tenant)}
        # of a node that does not answer nothing has ended
        there |= {key: tenant for key, tenant in self._alive.items() if tenant["node"] in view.away}
        for key, tenant in self._alive.items():
            if key not in there:
                await asyncio.to_thread(self._store.note_lifetime, _age(tenant))
        self._alive = there

    async def _call(self, entries: list[Entry], view: View) -> None:
        waiting = {entry.waiting: entry for entry in entries if entry.stage == Stage.WAITING}
        called = [entry for entry in entries if entry.stage == Stage.CALLED]
        while waiting:  # one after the other: who is called counts for the group's load at once
            order = await self._order([*waiting.values(), *called], view)
            seated, _ = seat(order, _free(view, called))
            if not seated:
                break
            each, at = seated[0]
            entry, gpu = waiting.pop(each), view.spaces[at].uuid
            await self._move(entry, Stage.CALLED, gpu=gpu)
            called.append(replace(entry, stage=Stage.CALLED, gpu=gpu))
        for entry in await asyncio.to_thread(self._store.entries):
            if entry.stage == Stage.CALLED:
                self._try(entry)

    async def _look_after(self, entry: Entry, names: set[str], gone: set[str]) -> None:
        user, server = entry.key
        old = entry.stage == Stage.ENDED and time.time() - entry.at > ENDED_S
        if old or user in gone or (entry.name in names and (await self._hub.servers(user)).get(server)):
            await asyncio.to_thread(self._store.leave, user, server)

    async def _gone(self, entries: Iterable[Entry]) -> set[str]:
        """Of who waits or is called those that are no users any more. The hub is asked seldom, for one user by one."""
        now = time.monotonic()
        here = {entry.waiting.user for entry in entries if entry.stage != Stage.ENDED}
        self._known = {user: self._known.get(user, now) for user in here}
        due = sorted((at, user) for user, at in self._known.items() if now - at >= KNOWN_S)[:KNOWN_AT_ONCE]
        gone = set()
        for _, user in due:
            self._known[user] = now
            try:
                if await self._hub.user(user) is None:
                    gone.add(user)
            except HubError as error:  # it is asked again
                log.warning("asking the hub for %s: %s", user, error)
        return gone

    async def _move(self, entry: Entry, stage: Stage, words: str = "", gpu: str = "") -> bool:
        """False: it is gone, or not as it was."""
        is_moved = await asyncio.to_thread(self._store.move, entry, stage, words, gpu)
        if is_moved:
            log.info("%s is %s: %s", entry.name, stage, words or entry.waiting.quota)
        return is_moved

    def _try(self, entry: Entry) -> None:
        """Beside the rest: a hub takes its time to start a server."""
        now = time.monotonic()
        if entry.key in self._starting or now - self._tried.get(entry.key, -TRY_AGAIN_S) < TRY_AGAIN_S:
            return
        self._tried = {key: at for key, at in self._tried.items() if now - at < TRY_AGAIN_S} | {entry.key: now}
        task = self._starting[entry.key] = asyncio.create_task(self._start(entry))
        task.add_done_callback(lambda _: self._starting.pop(entry.key, None))

    async def _start(self, entry: Entry) -> None:
        try:
            async with self._starts:
                await self._start_or_tell(entry)
        except HubError as error:
            await self._not_started(entry, error)
        except Exception:
            log.exception("starting %s", entry.name)

    async def _start_or_tell(self, entry: Entry) -> None:
        user, server = entry.key
        now = await asyncio.to_thread(self._store.entry, user, server)
        if now is None or _call_of(now) != _call_of(entry) or now.stage != Stage.CALLED:
            return  # it has left the queue, or asks for something else, since it was to be started
        is_ready = (await self._hub.servers(user)).get(server)
        was_asked = _call_of(entry) in self._asked
        if is_ready is None and entry.words not in ("", _BUSY):  # the spawner says that it was refused
            await self._failed(entry, entry.words, REFUSED_MAX)
        elif is_ready is None and was_asked:
            await self._move(entry, Stage.ENDED, _FAILED)
        elif is_ready is None:
            self._asked.add(_call_of(entry))
            await self._hub.start(user, server, dict(entry.options))
        elif is_ready:
            await self._has_no_gpu(entry, was_asked)

    async def _has_no_gpu(self, entry: Entry, was_asked: bool) -> None:
        """Its server runs; if it does so without a slice, the user is told."""
        view = await self._fleet.look()
        # a node that does not answer may have it
        is_unsure = bool(view.away) and entry.gpu not in {gpu["uuid"] for gpu in view.gpus}
        if entry.name not in view.names and not is_unsure:
            if was_asked:
                await self._move(entry, Stage.ENDED, _WITHOUT)
            elif not entry.words:
                await asyncio.to_thread(self._store.say, entry, _BUSY)
            elif time.time() - entry.at > CALL_S:
                await self._move(entry, Stage.ENDED, _PASSED)

    async def _not_started(self, entry: Entry, error: HubError) -> None:
        self._asked.discard(_call_of(entry))
        if error.status in _NOT_NOW:
            log.warning("%s is not started yet: %s", entry.name, error)
            return
        # at 409 somebody on the node was faster
        words = _FAILED if error.status >= 500 else str(error)
        await self._failed(entry, words, REFUSED_MAX if error.status == 409 else 1)

    async def _failed(self, entry: Entry, words: str, most: int) -> None:
        """Back to its place in the queue; out of it at the most-th time."""
        now = await asyncio.to_thread(self._store.entry, *entry.key)
        if now is None or now.stage != Stage.CALLED or _wait_of(now) != _wait_of(entry):
            return
        refused = self._refused[_wait_of(entry)] = self._refused.get(_wait_of(entry), 0) + 1
        if refused < most:
            await self._move(now, Stage.WAITING)
        else:
            await self._move(now, Stage.ENDED, words)


def _not_there(user: str, server: str) -> Refused:
    return Refused(404, f"{user}/{server} does not wait for a GPU"[:200])


def _call_of(entry: Entry) -> tuple[str, str, float]:
    return (*entry.key, entry.at)


def _wait_of(entry: Entry) -> tuple[str, str, float]:
    return (*entry.key, entry.waiting.since)


def _prospect(quota: Quota, view: View) -> tuple[bool, str]:
    """Whether there may be room some day, and why none is given now; a node that is away may have it."""
    if view.away:
        return True, ""
    return is_possible(quota, view.spaces), why_closed(quota, view.gpus)


def _free(view: View, called: list[Entry]) -> list[Space]:
    """What is left beside the room that is kept."""
    return without(view.spaces, [(entry.gpu, entry.waiting.quota) for entry in promised(called, view.names)])


def _running(view: View) -> list[Running]:
    """Those whose room is given to others when they end."""
    places = {gpu["uuid"]: at for at, gpu in enumerate(view.gpus) if not gpu["closed"]}
    return [
        Running(places[tenant["gpu"]["uuid"]], Quota.from_json(tenant["quota"]), _age(tenant))
        for tenant in view.tenants
        if tenant["gpu"]["uuid"] in places
    ]


def _age(tenant: Json) -> float:
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(tenant["created"])).total_seconds())
