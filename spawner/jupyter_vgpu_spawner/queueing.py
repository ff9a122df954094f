"""A spawner's part of the queue: a server that finds no room waits in it, and none overtakes those who wait."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from traitlets import Bool, Unicode

from jupyter_vgpu.client import Client, DaemonAway
from jupyter_vgpu.paths import ADMIN_SOCKET, default_run_dir
from jupyter_vgpu.quotas import Quota

from .choices import describe, why_not
from .database import DatabaseError
from .errors import DAEMON_AWAY, DATABASE_AWAY, Elsewhere, spawn_error
from .limits import Limits
from .queue_store import Entry, QueueStore, Stage, TooMany, promised
from .turns import Line, Space, without

Json = dict[str, Any]
T = TypeVar("T")
QUEUE_PATH = "services/vgpu/queue"


class Queueing(Limits):
    """The node daemon, and the queue in front of it."""

    vgpu_socket = Unicode(
        help="""
        The node daemon's admin socket.

        Default: where `jupyter vgpu node` puts it for the hub's own user::

            c.VGPUDockerSpawner.vgpu_socket = "/run/vgpu/vgpud.sock"

        .. versionadded:: 0.1
        """
    ).tag(config=True)

    def _vgpu_socket_default(self) -> str:
        return str(default_run_dir() / ADMIN_SOCKET)

    @property
    def vgpu_client(self) -> Client:
        """The node daemon."""
        return Client(self.vgpu_socket)

    gpu_queue = Bool(
        False,
        help="""
        Let users wait for a slice that is in use by others.

        Who chooses one waits in a queue, and the hub's GPU service starts the server when its turn comes. It needs that
        service, so `setup_vgpu` sets this::

            c.VGPUMixin.gpu_queue = False  # say that there is no room, and no more

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    async def _gpus(self) -> list[Json]:
        gpus: list[Json] = (await self._ask_node("/api/gpus"))["gpus"]
        return gpus

    async def _ask_node(self, path: str) -> Json:
        """Raises HTTPError."""
        try:
            answer: Json = await self.vgpu_client.arequest("GET", path)
        except DaemonAway as error:
            self.log.error("%s", error)
            raise spawn_error(503, DAEMON_AWAY) from error
        return answer

    @property
    def _queue(self) -> QueueStore | None:
        return self._database.queue if self._database and self.gpu_queue else None

    @property
    def _queue_url(self) -> str:
        base = self.hub.base_url if self.hub else "/hub/"
        return str(base).removesuffix("hub/") + QUEUE_PATH

    async def _ask_queue(self, ask: Callable[..., T], *arguments: Any) -> T:
        """Raises HTTPError."""
        try:
            return await asyncio.to_thread(ask, *arguments)
        except DatabaseError as error:
            self.log.error("queue: %s", error)
            raise spawn_error(503, DATABASE_AWAY) from error

    async def _line(self, gpus: list[Json]) -> Line:
        """The queue in front of this server. Raises HTTPError."""
        spaces = [Space.from_json(gpu) for gpu in gpus]
        if not self._queue:
            return Line(spaces)
        entries = await self._ask_queue(self._queue.entries)
        mine = next((entry for entry in entries if entry.key == (self.user.name, self.name)), None)
        others = [entry for entry in entries if entry is not mine]
        kept = bool(promised(others, ()))
        if kept:
            names = {each["name"] for each in (await self._ask_node("/api/tenants"))["tenants"]}
            spaces = without(spaces, [(each.gpu, each.waiting.quota) for each in promised(others, names)])
        since = mine.waiting.since if mine and mine.stage == Stage.WAITING else math.inf
        ahead = [each.waiting for each in entries if each.stage == Stage.WAITING and each.waiting.since < since]
        if mine and mine.stage == Stage.CALLED:
            return Line(spaces, ahead, mine.waiting.quota, mine.gpu, kept)
        return Line(spaces, ahead, kept=kept)

    async def _queue_entry(self) -> Entry | None:
        """This server's place in the queue, if it has one. Raises HTTPError."""
        return await self._ask_queue(self._queue.entry, self.user.name, self.name) if self._queue else None

    async def _wait_in_queue(self, quota: Quota, options: Json) -> None:
        """Raises Elsewhere, or HTTPError."""
        assert self._queue  # noqa: S101 (as the caller has looked)
        try:
            kept = json.loads(json.dumps(options))
        except (TypeError, ValueError) as error:  # such as an uploaded file
            raise spawn_error(409, "These options can't wait in a queue: choose others, or another slice.") from error
        if self.name and not self.user.settings.get("allow_named_servers"):
            raise spawn_error(400, "Named servers are not enabled.")
        try:
            await self._ask_queue(self._queue.join, self.user.name, self.name, quota, kept)
        except TooMany as error:
            raise spawn_error(409, str(error)) from error
        raise Elsewhere(self._queue_url, f"You wait for {describe(quota)} now.")

    async def _check_turn(self, quota: Quota) -> str | None:
        """However the start was asked for: nobody overtakes those who wait. The GPU to take; None: any."""
        if not self._queue:
            return None
        gpus = await self._gpus()
        line = await self._line(gpus)
        if not why_not(quota, gpus) and line.must_wait(quota):
            raise spawn_error(
                409, f"Others wait for a GPU before you: wait on the hub's spawn page or at {self._queue_url}."
            )
        return line.where(quota)
