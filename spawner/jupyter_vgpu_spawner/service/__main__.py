"""Started by the hub, with JUPYTERHUB_… and JUPYTER_VGPU_SERVICE in its environment: see `setup_vgpu`."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from urllib.parse import urlparse

from tornado.httpserver import HTTPServer

from jupyter_vgpu.client import Client

from ..database import Database, DatabaseError
from .handlers import application
from .hub import HubApi
from .manager import METER_S, Manager
from .settings import Settings

log = logging.getLogger("vgpu.service")
_BODY_MAX = 64 << 10


async def _count(manager: Manager, ends: asyncio.Event) -> None:
    hub = os.getppid()
    while True:
        if os.getppid() != hub:  # a killed hub starts another service, and one of them counts
            log.error("the hub that started this service is gone")
            ends.set()
            return
        try:
            await manager.meter()
        except DatabaseError as error:
            log.error("GPU-hours are not written: %s", error)
        await asyncio.sleep(METER_S)


async def serve() -> None:
    """Until SIGTERM."""
    settings = Settings.from_environment()
    database = Database(settings.db_url)
    await asyncio.to_thread(database.upgrade)
    hub = HubApi(os.environ["JUPYTERHUB_API_URL"], os.environ["JUPYTERHUB_API_TOKEN"])
    manager = Manager(settings, database, Client(settings.socket), hub)
    prefix = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
    pages = application(manager, prefix, os.environ["JUPYTERHUB_BASE_URL"] + "hub/", secrets.token_bytes(32))
    where = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    server = HTTPServer(pages, xheaders=True, max_body_size=_BODY_MAX)
    server.listen(where.port or 0, where.hostname or "127.0.0.1")
    log.info("the GPU service of the hub, at %s", prefix)
    ends = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ends.set)
    counting = asyncio.create_task(_count(manager, ends))
    await ends.wait()
    counting.cancel()
    server.stop()
    database.close()


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="[%(levelname)1.1s %(asctime)s %(name)s] %(message)s")
    asyncio.run(serve())


if __name__ == "__main__":
    main()
