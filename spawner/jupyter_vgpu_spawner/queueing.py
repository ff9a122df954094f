"""A spawner's part of the queue: a server that finds no room waits in it, and none overtakes those who wait."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from traitlets import Bool, Dict, Enum, TraitError, Unicode, validate

from jupyter_vgpu.client import DaemonError
from jupyter_vgpu.paths import ADMIN_SOCKET, default_run_dir
from jupyter_vgpu.quotas import Quota
from jupyter_vgpu.turn import Stage

from .choices import describe, why_not
from .database import DatabaseError
from .errors import DAEMON_AWAY, DATABASE_AWAY, Elsewhere, Told
from .fleet import Fleet, View, open_fleet
from .limits import Limits
from .nodes import Packing, parse_nodes
from .queue_store import Entry, QueueStore, TooMany, promised
from .turns import Line, is_possible, without

Json = dict[str, Any]
T = TypeVar("T")
QUEUE_PATH = "services/vgpu/queue"


class Queueing(Limits):
    """The node daemons, and the queue in front of them."""

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

    vgpu_nodes = Dict(
        help="""
        The machines with GPUs, by name, where there are several.

        Of each: `vgpud`, its daemon's admin socket or `https://host:port` (`NodeApp.api_address` there). For another
        machine also `docker`, its Docker Engine's URL, `ip`, its address that the hub and its proxy reach, and
        `ca`, `cert` and `key`, files of PEM that both are spoken to with. A server without a GPU runs on the first.
        What is mounted into containers has to be on every node. Empty: `vgpu_socket` is the one node::

            c.VGPUMixin.vgpu_nodes = {
                "here": {"vgpud": "/run/vgpu/vgpud.sock"},
                "b": {
                    "vgpud": "https://10.0.0.7:9413", "docker": "tcp://10.0.0.7:2376", "ip": "10.0.0.7",
                    "ca": "/etc/vgpu/ca.crt", "cert": "/etc/vgpu/hub.crt", "key": "/etc/vgpu/hub.key",
                },
            }

        .. versionadded:: 0.1
        """
    ).tag(config=True)

    vgpu_hub = Unicode(
        help="""
        What tells this hub's slices from those that others made.

        It is written on each slice; the service removes slices of this hub that no server is in any more, and no
        others. `setup_vgpu` makes one of the machine, the directory and the database; a hub that changes these with
        each start needs one of its own. Empty: none is removed::

            c.VGPUMixin.vgpu_hub = "physics"

        .. versionadded:: 0.1
        """
    ).tag(config=True)

    vgpu_placement = Enum(
        [str(packing) for packing in Packing],
        default_value=str(Packing.SPREAD),
        help="""
        Which node a new slice goes to, where there are several.

        `spread`: the one whose emptiest GPU has the most free memory, while over a quarter of all GPUs are empty; then
        as `binpack`: the first of `vgpu_nodes` with room. Which of the node's GPUs it is, the node itself says
        (`NodeApp.placement`)::

            c.VGPUMixin.vgpu_placement = "binpack"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    has_engines: ClassVar[bool] = False
    """It can start servers on another machine."""

    @validate("vgpu_nodes")
    def _check_nodes(self, proposal: Any) -> Any:
        try:
            parse_nodes(proposal["value"], self.vgpu_socket, has_engines=self.has_engines)
        except ValueError as error:
            raise TraitError(str(error)) from error
        return proposal["value"]

    @cached_property
    def fleet(self) -> Fleet:
        """The node daemons."""
        return open_fleet(parse_nodes(self.vgpu_nodes, self.vgpu_socket, has_engines=self.has_engines))

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

    async def _look_for(self, looking: Awaitable[View]) -> View:
        """Raises HTTPError."""
        try:
            return await looking
        except DaemonError as error:
            self.log.error("%s", error)
            raise Told(503, DAEMON_AWAY) from error

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
            raise Told(503, DATABASE_AWAY) from error

    async def _entries(self) -> list[Entry]:
        """All in the queue; none where this hub has no queue. Raises HTTPError."""
        return await self._ask_queue(self._queue.entries) if self._queue else []

    def _mine(self, entries: list[Entry]) -> Entry | None:
        """This server's place in the queue, if it has one."""
        return next((entry for entry in entries if entry.key == (self.user.name, self.name)), None)

    def _line(self, view: View, entries: list[Entry]) -> Line:
        """The queue in front of this server."""
        spaces = view.spaces
        mine = self._mine(entries)
        others = [entry for entry in entries if entry is not mine]
        kept = bool(promised(others, ()))
        if kept:
            spaces = without(spaces, [(each.gpu, each.waiting.quota) for each in promised(others, view.names_on_gpus)])
        since = mine.waiting.since if mine and mine.stage == Stage.WAITING else math.inf
        ahead = [each.waiting for each in entries if each.stage == Stage.WAITING and each.waiting.since < since]
        if mine and mine.stage == Stage.CALLED:
            return Line(spaces, ahead, mine.waiting.quota, mine.gpu, kept)
        return Line(spaces, ahead, kept=kept)

    def _others_in_queue(self, entries: list[Entry]) -> list[str]:
        """Names of this user's other servers that wait for a GPU, and not behind this one."""
        queued = [each for each in entries if each.stage != Stage.ENDED and each.waiting.user == self.user.name]
        mine = self._mine(queued)
        if mine and mine.stage == Stage.CALLED:
            queued = [each for each in queued if each.waiting.since < mine.waiting.since]
        return sorted(each.waiting.server for each in queued if each is not mine)

    async def _wait_in_queue(self, quota: Quota, options: Json) -> None:
        """Raises Elsewhere, or HTTPError."""
        assert self._queue  # noqa: S101 (as the caller has looked)
        try:
            kept = json.loads(json.dumps(options))
        except (TypeError, ValueError) as error:  # such as an uploaded file
            raise Told(409, "These options can't wait in a queue: choose others, or another slice.") from error
        if self.name and not self.user.settings.get("allow_named_servers"):
            raise Told(400, "Named servers are not enabled.")
        try:
            await self._ask_queue(self._queue.join, self.user.name, self.name, quota, kept)
        except TooMany as error:
            raise Told(409, str(error)) from error
        raise Elsewhere(self._queue_url, f"You wait for {describe(quota)} now.")

    async def _check_turn(self, quota: Quota, view: View) -> str | None:
        """However the start was asked for: nobody overtakes those who wait. The GPU to take; None: any."""
        if not self._queue:
            return None
        # the queue after the GPUs: whoever was called since then has room kept there
        line = self._line(view, await self._entries())
        # where nobody waits and there is no room, the node has better words for it
        waits = bool(line.ahead) and is_possible(quota, line.spaces)
        if line.must_wait(quota) and (waits or not why_not(quota, view.gpus)):
            raise Told(409, f"Others wait for a GPU before you: wait on the hub's spawn page or at {self._queue_url}.")
        return line.where(quota)

    async def _note_refusal(self, error: Told) -> None:
        """For the service, where it started this server: of a start that takes its time the hub does not tell why it
        failed. With words it counts as refused; without, it is tried again."""
        if not self._queue or error.status_code not in (409, 503):
            return
        try:
            entry = await asyncio.to_thread(self._queue.entry, self.user.name, self.name)
            if entry and entry.stage == Stage.CALLED:
                words = error.jupyterhub_message if error.status_code == 409 else ""
                await asyncio.to_thread(self._queue.say, entry, words)
        except DatabaseError as trouble:
            self.log.error("queue: %s", trouble)
