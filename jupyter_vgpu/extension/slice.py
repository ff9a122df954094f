"""This server's slice, as its user sees it: what vgpud says, told by notebook, console and terminal."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from jupyter_server.utils import ensure_async

from .. import hours, turn
from ..client import Client, DaemonAway, DaemonError
from ..idle import Action, IdleRule
from ..inside import NoSlice, slice_client
from ..paths import ENV_BOARD_DIR, ENV_NO_QUOTA, ENV_QUEUE_URL, TENANT_SOCKET
from .attribution import Json, Owner, attribute, owner_of, owners_of_kernels
from .explain import Involved, explain, involved
from .rests import Rests

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

TIMEOUT_S = 5
ENDED_KEPT = 10


def nothing(reason: str, message: str) -> Json:
    """There is no slice to show, and why."""
    return {"kind": "none", "reason": reason, "message": message}


class Slice:
    """Asks vgpud, and knows the kernels and terminals of this server."""

    def __init__(self, server_app: ServerApp) -> None:
        self._server = server_app
        self._involved: dict[float, Involved] = {}  # whom the last refusals were about, by when they were first
        self._rests = Rests()
        self._ended: list[Json] = []

    async def answer(self) -> Json:
        """What `GET vgpu/slice` says."""
        try:
            client = slice_client(TIMEOUT_S)
        except NoSlice:
            if "JUPYTERHUB_API_TOKEN" not in os.environ:
                return nothing("not-under-hub", "This server was not started by a hub that shares GPUs.")
            if ENV_NO_QUOTA in os.environ:
                never = "You may have no GPU on this hub now: ask its admins for one."
                return nothing("no-quota", never) | await _notices()
            without = "This server was started without a GPU. To get one, stop it and choose a GPU slice."
            return nothing("no-slice", without) | await _notices()
        try:
            view: Json = await client.arequest("GET", "/api/slice")
        except DaemonAway:
            return nothing("daemon-away", "The GPU service does not answer now. What runs goes on; numbers come back.")
        except DaemonError as error:
            return nothing("daemon-away", f"The GPU service says: {error}")
        return await self._tell(view)

    async def _tell(self, view: Json) -> Json:
        owners = await self._owners()
        now = time.time()
        holders, refusals = await asyncio.to_thread(self._who, view, owners)
        keep = ("tier", "gpu", "quota", "usage", "outside", "maintenance")
        return {
            "kind": "slice",
            "now": now,
            **{key: view[key] for key in keep},
            "refusals": {"count": view["refusals"]["count"], "recent": refusals},
            "holders": holders,
            "idle": self._idle(view, holders, now),
            "hours": hours.told(view["labels"]),
            "queue": _queue(view["labels"]),
        }

    def _who(self, view: Json, owners: dict[int, Owner]) -> tuple[list[Json], list[Json]]:
        """Who holds what, and the last refusals, explained."""
        rows = attribute(view["processes"], owners, _parent)

        def owner(process: Mapping[str, Any]) -> Owner:
            return owner_of(process["pid_in_slice"], owners, _parent) or Owner("other", process["name"])

        recent = view["refusals"]["recent"]
        self._involved = {
            each["first"]: self._involved.get(each["first"]) or involved(each, owners, owner) for each in recent
        }
        quota = view["quota"]["memory"]
        return rows, [explain(each, quota, self._involved[each["first"]], rows) for each in recent]

    def _idle(self, view: Json, rows: list[Json], now: float) -> Json | None:
        """What becomes of who rests, and when; None: the hub has no rule."""
        rule = IdleRule.of(view["labels"])
        if not rule:
            return None
        rests = self._rests.look(rule, view, rows, now)
        return {"action": str(rule.action), "seconds": rule.seconds, "rests": rests, "ended": self._ended}

    async def end_idle_kernels(self) -> bool:
        """Where the hub wants it so: shut down the kernels that held GPU memory and rested for too long.

        False: it does not want it, and a slice's rule stays as it was made.
        """
        told = await self.answer()
        if told["kind"] != "slice":
            return True  # nobody answers now
        idle = told["idle"]
        if not idle or idle["action"] != Action.KERNEL:
            return False
        for rest in idle["rests"]:
            if rest["until"] <= told["now"]:
                await ensure_async(self._server.kernel_manager.shutdown_kernel(rest["id"]))
                self._server.log.info("GPU: shut down %s, which rested for %.0f s", rest["name"], idle["seconds"])
                self._ended = [*self._ended, {"name": rest["name"], "time": told["now"]}][-ENDED_KEPT:]
        return True

    async def _owners(self) -> dict[int, Owner]:
        manager = self._server.kernel_manager
        kernels = {kernel: _kernel_pid(manager, kernel) for kernel in manager.list_kernel_ids()}
        sessions: list[Json] = await ensure_async(self._server.session_manager.list_sessions())
        owners = owners_of_kernels({kernel: pid for kernel, pid in kernels.items() if pid}, sessions)
        terminals = getattr(self._server.web_app.settings.get("terminal_manager"), "terminals", None) or {}
        for name, terminal in terminals.items():
            owners[terminal.ptyproc.pid] = Owner("terminal", f"Terminal {name}", None, name)
        return owners


async def _notices() -> Json:
    """What the hub says to a server without a slice; empty where there is no board to say it on."""
    board = os.environ.get(ENV_BOARD_DIR)
    if not board:
        return {}
    try:
        said: Json = await Client(Path(board) / TENANT_SOCKET, TIMEOUT_S).arequest("GET", "/api/notices")
    except DaemonError:  # the daemon is away: nothing new is known
        return {}
    return {"queue": _queue(said["labels"])}


def _queue(labels: Mapping[str, str]) -> Json | None:
    """Where this user stands in the hub's queue; None: nowhere. here: it is this server. url: of the queue's page."""
    told = turn.told(labels)
    this = turn.cut(os.environ.get("JUPYTERHUB_SERVER_NAME", ""), turn.NAME_MAX)
    url = os.environ.get("JUPYTERHUB_HOST", "") + os.environ.get(ENV_QUEUE_URL, "")
    return told | {"here": told["server"] == this, "url": url or None} if told else None


def _kernel_pid(manager: Any, kernel: str) -> int | None:
    provisioner = getattr(manager.get_kernel(kernel), "provisioner", None)
    return getattr(provisioner, "pid", None)


def _parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid() or None
    except psutil.Error:
        return None
