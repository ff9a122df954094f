"""What hub_load.py puts into a JupyterHub: a spawner whose servers cost nothing, and a handler that asks many spawners
of the hub's own users at a stated rate, on the hub's own event loop, beside all else that the hub does.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_vgpu_spawner.errors import Elsewhere
from jupyter_vgpu_spawner.mixin import VGPUMixin
from jupyterhub.handlers import BaseHandler
from jupyterhub.spawner import Spawner


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


answers = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
threading.Thread(target=answers.serve_forever, daemon=True).start()


class StillSpawner(Spawner):
    """A server is an address that answers, and no process."""

    started = False

    async def start(self) -> Any:
        self.started = True
        return answers.server_address

    async def stop(self, now: bool = False) -> None:
        self.started = False

    async def poll(self) -> int | None:
        return None if self.started else 0


class StillGPUSpawner(VGPUMixin, StillSpawner):
    """With a slice."""


async def _ask(spawner: StillGPUSpawner) -> None:
    """As the spawn page's form does; it has to wait."""
    try:
        await spawner.run_options_from_form({})
    except Elsewhere:
        return
    raise AssertionError(f"{spawner.user.name} finds room")


_WORKS: dict[str, Callable[[StillGPUSpawner], Awaitable[Any]]] = {
    "start": lambda spawner: spawner.start(),
    "stop": lambda spawner: spawner.stop(),
    "ask": _ask,
}


class LoadHandler(BaseHandler):
    """POST {"work": one of _WORKS, "users": names, "a_second": how many are due}: milliseconds of each, from the moment
    that it was due, and how many a second were done."""

    def check_xsrf_cookie(self) -> None:
        """It is on loopback, for a benchmark."""

    async def post(self) -> None:
        asked = json.loads(self.request.body)
        work = _WORKS[asked["work"]]
        spawners = [self.find_user(name).get_spawner("", replace_failed=True) for name in asked["users"]]
        took: list[float] = []
        began = time.monotonic() + 0.5

        async def one(number: int, spawner: StillGPUSpawner) -> None:
            due = began + number / asked["a_second"]
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await work(spawner)
            took.append(1e3 * (time.monotonic() - due))

        await asyncio.gather(*(one(number, spawner) for number, spawner in enumerate(spawners)))
        self.finish({"took": took, "a_second": len(took) / (time.monotonic() - began)})
