"""REST of the server extension, as openapi.json describes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.ioloop import PeriodicCallback

from ..paths import ENV_SLICE_DIR
from .slice import Slice

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

AUTH_RESOURCE = "vgpu"
LOOK_MS = 30_000


class SliceHandler(APIHandler):
    """The slice of this server: quota, usage, tier, and who holds what."""

    auth_resource = AUTH_RESOURCE

    def initialize(self, view: Slice) -> None:
        self._view = view

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.finish(await self._view.answer())


class OpenApiHandler(APIHandler):
    """What there is here, for who writes another front end."""

    auth_resource = AUTH_RESOURCE

    @web.authenticated
    @authorized
    async def get(self) -> None:
        base = self.settings["base_url"]
        said = json.loads(Path(__file__).with_name("openapi.json").read_text())
        self.finish(json.dumps(said | {"servers": [{"url": base.rstrip("/") or "/"}]}))


def setup(server_app: ServerApp) -> None:
    """Add the routes to a Jupyter server, and look after kernels that rest where the hub wants it so."""
    base = server_app.web_app.settings["base_url"]
    view = Slice(server_app)
    routes: list[tuple[str, Any, dict[str, Any]]] = [
        (url_path_join(base, "vgpu", "slice"), SliceHandler, {"view": view}),
        (url_path_join(base, "vgpu", r"openapi\.json"), OpenApiHandler, {}),
    ]
    server_app.web_app.add_handlers(".*$", routes)
    if os.environ.get(ENV_SLICE_DIR):
        _look_after_kernels(view)


def _look_after_kernels(view: Slice) -> None:
    """As long as there is something to look after."""

    async def look() -> None:
        if not await view.end_idle_kernels():
            callback.stop()

    callback = PeriodicCallback(look, LOOK_MS)
    callback.start()
