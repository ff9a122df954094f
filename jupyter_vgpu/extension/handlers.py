"""REST of the server extension: `GET vgpu/slice`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import ensure_async, url_path_join
from tornado import web

from ..client import Client, DaemonAway, DaemonError
from ..paths import ENV_SLICE_DIR, TENANT_SOCKET
from .attribution import Json, Owner, attribute, owner_of, owners_of_kernels
from .explain import Involved, explain, involved

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

AUTH_RESOURCE = "vgpu"
INVOLVED = "vgpu_involved"
"""Among the server's settings: whom the last refusals were about, by when they were first."""


def nothing(reason: str, message: str) -> Json:
    """There is no slice to show, and why."""
    return {"kind": "none", "reason": reason, "message": message}


class SliceHandler(APIHandler):
    """The slice of this server: quota, usage, tier, and who holds what."""

    auth_resource = AUTH_RESOURCE

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.finish(await self._slice())

    async def _slice(self) -> Json:
        directory = os.environ.get(ENV_SLICE_DIR)
        if not directory:
            if "JUPYTERHUB_API_TOKEN" not in os.environ:
                return nothing("not-under-hub", "This server was not started by a hub that shares GPUs.")
            return nothing(
                "no-slice", "This server was started without a GPU. To get one, stop it and choose a GPU slice."
            )
        try:
            view: Json = await Client(Path(directory) / TENANT_SOCKET, timeout=5).arequest("GET", "/api/slice")
        except DaemonAway:
            return nothing("daemon-away", "The GPU service does not answer now. What runs goes on; numbers come back.")
        except DaemonError as error:
            return nothing("daemon-away", f"The GPU service says: {error}")
        owners = await self._owners()
        holders, refusals = await asyncio.to_thread(self._who, view, owners)
        keep = ("tier", "gpu", "quota", "usage", "outside")
        told = {"count": view["refusals"]["count"], "recent": refusals}
        answer = {"kind": "slice", "now": time.time(), **{key: view[key] for key in keep}}
        return answer | {"refusals": told, "holders": holders}

    def _who(self, view: Json, owners: dict[int, Owner]) -> tuple[list[Json], list[Json]]:
        """Who holds what, and the last refusals, explained."""
        rows = attribute(view["processes"], owners, _parent)

        def owner(process: Mapping[str, Any]) -> Owner:
            return owner_of(process["pid_in_slice"], owners, _parent) or Owner("other", process["name"])

        known: dict[float, Involved] = self.settings[INVOLVED]
        now: dict[float, Involved] = {}
        for refusal in view["refusals"]["recent"]:
            first = refusal["first"]
            now[first] = known.get(first) or involved(refusal, owners, owner)
        self.settings[INVOLVED] = now
        quota = view["quota"]["memory"]
        return rows, [explain(each, quota, now[each["first"]], rows) for each in view["refusals"]["recent"]]

    async def _owners(self) -> dict[int, Owner]:
        kernels = {kernel: _kernel_pid(self.kernel_manager, kernel) for kernel in self.kernel_manager.list_kernel_ids()}
        sessions: list[Json] = await ensure_async(self.session_manager.list_sessions())
        owners = owners_of_kernels({kernel: pid for kernel, pid in kernels.items() if pid}, sessions)
        terminals = getattr(self.settings.get("terminal_manager"), "terminals", None) or {}
        for name, terminal in terminals.items():
            owners[terminal.ptyproc.pid] = Owner("terminal", f"Terminal {name}", None, name)
        return owners


def _kernel_pid(manager: Any, kernel: str) -> int | None:
    provisioner = getattr(manager.get_kernel(kernel), "provisioner", None)
    return getattr(provisioner, "pid", None)


def _parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid() or None
    except psutil.Error:
        return None


def setup(server_app: ServerApp) -> None:
    """Add the routes to a Jupyter server."""
    base = server_app.web_app.settings["base_url"]
    server_app.web_app.settings[INVOLVED] = {}
    server_app.web_app.add_handlers(".*$", [(url_path_join(base, "vgpu", "slice"), SliceHandler)])
