"""Starting who is called, on a real database: only what is asked for still."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_vgpu_spawner import VGPUSimpleLocalProcessSpawner
from jupyter_vgpu_spawner.database import Database
from jupyter_vgpu_spawner.errors import Told
from jupyter_vgpu_spawner.fleet import Fleet, View
from jupyter_vgpu_spawner.nodes import NodeConfig
from jupyter_vgpu_spawner.service.dispatcher import KNOWN_AT_ONCE, STARTS_MAX, Dispatcher
from jupyter_vgpu_spawner.service.hub import HubApi, HubUser
from jupyter_vgpu_spawner.service.recent import Recent

from jupyter_vgpu.quotas import Quota
from jupyter_vgpu.turn import Stage

SMALL = Quota(1 << 30, 25)


class SlowHub(HubApi):
    """Takes a start and says nothing more, as a hub does of a start that takes its time."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1/hub/api", "token")
        self.started: list[str] = []
        self.is_busy, self.goes_on = asyncio.Event(), asyncio.Event()

    async def servers(self, user: str) -> dict[str, bool]:
        return {}

    async def start(self, user: str, server: str, options: dict[str, Any]) -> None:
        self.started.append(user)
        if len(self.started) == STARTS_MAX:
            self.is_busy.set()
        await self.goes_on.wait()


def made(tmp_path: Path, hub: HubApi) -> tuple[Dispatcher, Database]:
    database = Database(f"sqlite:///{tmp_path}/vgpu.sqlite")
    database.upgrade()
    fleet = Fleet([NodeConfig("node", str(tmp_path / "nobody.sock"))])

    async def users() -> tuple[list[HubUser], dict[str, Any]]:
        return [], {}

    async def look() -> View:
        return View()

    recent, looked = Recent("the hub", users, 5, 60), Recent("the nodes", look, 1, 2)
    return Dispatcher(database.queue, fleet, hub, recent, looked), database


class KnownUsers(SlowHub):
    """Has these users, and counts who is asked for."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names, self.asked_for = set(names), []  # type: set[str], list[str]

    async def user(self, user: str) -> HubUser | None:
        self.asked_for.append(user)
        return HubUser(user) if user in self.names else None


def call(database: Database, *users: str) -> None:
    for user in users:
        database.queue.join(user, "", SMALL, {})
    for entry in database.queue.entries():
        database.queue.move(entry, Stage.CALLED, gpu="GPU-1")


def test_who_left_the_queue_while_others_were_started_is_not_started(tmp_path: Path) -> None:
    async def story() -> None:
        hub = SlowHub()
        dispatcher, database = made(tmp_path, hub)
        first = [f"user{number}" for number in range(STARTS_MAX)]
        call(database, *first, "late", "later")
        starts = [asyncio.create_task(dispatcher._start(entry)) for entry in database.queue.entries()]
        await hub.is_busy.wait()
        database.queue.leave("late", "")
        hub.goes_on.set()
        await asyncio.gather(*starts)
        assert sorted(hub.started) == sorted([*first, "later"])

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_start_that_came_to_nothing_ends_the_wait(tmp_path: Path) -> None:
    """It failed, or somebody stopped it: the hub does not say which, and who stopped it does not want it back."""

    async def story() -> None:
        hub = SlowHub()
        hub.goes_on.set()
        dispatcher, database = made(tmp_path, hub)
        call(database, "alice")
        await dispatcher._start(database.queue.entries()[0])  # the hub takes it
        await dispatcher._start(database.queue.entries()[0])  # and it is not there at the next look
        entry = database.queue.entries()[0]
        assert (entry.stage, "ended before it was ready" in entry.words) == (Stage.ENDED, True)

    asyncio.run(asyncio.wait_for(story(), 30))


@pytest.mark.parametrize(("status", "stages"), [(409, ["waiting"] * 4 + ["ended"]), (503, ["called"] * 6)])
def test_a_start_that_the_node_refuses_slowly_keeps_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, stages: list[str]
) -> None:
    async def story() -> None:
        hub = SlowHub()
        hub.goes_on.set()
        dispatcher, database = made(tmp_path, hub)
        spawner = VGPUSimpleLocalProcessSpawner(gpu_queue=True)
        spawner.user = SimpleNamespace(name="alice")
        monkeypatch.setattr(type(spawner), "_database", database)
        call(database, "alice")
        since = database.queue.entries()[0].waiting.since
        for stage in stages:
            if database.queue.entries()[0].stage == Stage.WAITING:
                call(database)
            await dispatcher._start(database.queue.entries()[0])  # the hub takes it
            await spawner._note_refusal(Told(status, "no room"))  # some time later
            if status == 409:
                await dispatcher._start(database.queue.entries()[0])
            entry = database.queue.entries()[0]
            assert (entry.stage, entry.waiting.since) == (stage, since)
        assert hub.started == ["alice"] * len(stages)
        assert entry.words == ("no room" if status == 409 else "")

    asyncio.run(asyncio.wait_for(story(), 30))


def test_who_is_no_user_of_the_hub_any_more_leaves_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(dispatcher: Dispatcher, database: Database) -> list[str]:
        gone = await dispatcher._gone(database.queue.entries())
        for entry in database.queue.entries():
            await dispatcher._look_after(entry, set(), gone)
        return sorted(entry.name for entry in database.queue.entries())

    async def story() -> None:
        hub = KnownUsers("alice", "bob")
        dispatcher, database = made(tmp_path, hub)
        for user, server in (("alice", ""), ("bob", ""), ("bob", "more"), ("eve", "")):
            database.queue.join(user, server, SMALL, {})
        eve = next(entry for entry in database.queue.entries() if entry.waiting.user == "eve")
        database.queue.move(eve, Stage.ENDED, "no more")
        hub.names.remove("bob")
        assert await look(dispatcher, database) == ["alice/", "bob/", "bob/more", "eve/"]
        assert hub.asked_for == []  # they were users a moment ago
        monkeypatch.setattr("jupyter_vgpu_spawner.service.dispatcher.KNOWN_S", 0.0)
        assert await look(dispatcher, database) == ["alice/", "eve/"]
        assert sorted(hub.asked_for) == ["alice", "bob"]  # whose wait has ended, of that one nothing is asked
        for number in range(2 * KNOWN_AT_ONCE):
            database.queue.join(f"user{number}", "", SMALL, {})
        hub.asked_for.clear()
        await look(dispatcher, database)
        assert len(hub.asked_for) == KNOWN_AT_ONCE

    asyncio.run(asyncio.wait_for(story(), 30))
