"""Started by the hub, with JUPYTERHUB_… and JUPYTER_VGPU_SERVICE in its environment: see `setup_vgpu`."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import secrets
import signal
from collections.abc import Awaitable, Callable
from urllib.parse import urlparse

from tornado.httpserver import HTTPServer

from ..database import Database, DatabaseError, MigrationError
from .dispatcher import TICK_S, Dispatcher
from .hub import HubApi
from .manager import METER_S, Manager
from .news import News
from .routes import application
from .settings import Settings

log = logging.getLogger("vgpu.service")
_BODY_MAX = 64 << 10
RETRY_S, LISTEN_AGAIN_S, LISTEN_ATTEMPTS = 5.0, 1.0, 20


async def _repeat(what: str, work: Callable[[], Awaitable[None]], seconds: float) -> None:
    """For ever; what fails is said and tried again."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("%s", what)
        await asyncio.sleep(seconds)


async def _prepare(database: Database) -> None:
    """Until the tables are up to date; until then pages say that the database does not answer."""
    while True:
        try:
            await asyncio.to_thread(database.upgrade)
        except (DatabaseError, MigrationError) as error:
            log.error("the database is not ready: %s", error)
        except Exception:
            log.exception("the database is not ready")
        else:
            return
        await asyncio.sleep(RETRY_S)


def _watch(hub: int, ends: asyncio.Event) -> None:
    """A killed hub starts another service, and one of them counts."""
    fd = os.pidfd_open(hub)
    if os.getppid() != hub:  # it ended before it could be watched
        ends.set()
    asyncio.get_running_loop().add_reader(fd, ends.set)


async def _listen(server: HTTPServer, url: str) -> None:
    """The service of a hub that was killed may hold the port for a moment more."""
    where = urlparse(url)
    for attempt in range(LISTEN_ATTEMPTS):
        try:
            server.listen(where.port or 0, where.hostname or "127.0.0.1")
        except OSError as error:
            if error.errno != errno.EADDRINUSE or attempt == LISTEN_ATTEMPTS - 1:
                raise
            await asyncio.sleep(LISTEN_AGAIN_S)
        else:
            return


async def serve(hub: int) -> None:
    """Until SIGTERM, or until the process `hub` is gone."""
    settings = Settings.from_environment()
    database = Database(settings.db_url)
    api = HubApi(os.environ["JUPYTERHUB_API_URL"], os.environ["JUPYTERHUB_API_TOKEN"])
    fleet = settings.fleet
    manager = Manager(settings, database, fleet, api)
    dispatcher = Dispatcher(database.queue, fleet, api, manager.recent, manager.looked) if settings.queue else None
    prefix = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
    pages = application(
        manager, dispatcher, prefix, os.environ["JUPYTERHUB_BASE_URL"] + "hub/", secrets.token_bytes(32)
    )
    ends = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ends.set)
    server = HTTPServer(pages, xheaders=True, max_body_size=_BODY_MAX)
    await _listen(server, os.environ["JUPYTERHUB_SERVICE_URL"])  # the hub waits for it, and ends without
    log.info("the GPU service of the hub, at %s", prefix)

    async def work() -> None:
        await _prepare(database)
        works = [
            _repeat("GPU-hours are not counted now", manager.meter, METER_S),
            _repeat("running slices don't follow their quotas now", manager.follow_all, METER_S),
        ]
        if dispatcher:
            news = News(dispatcher, fleet, settings.hub)
            works.append(_repeat("the queue stands still now", dispatcher.tick, TICK_S))
            works.append(_repeat("who waits is not told in JupyterLab now", news.tell, TICK_S))
        await asyncio.gather(*works)

    _watch(hub, ends)
    working = asyncio.create_task(work())
    await ends.wait()
    working.cancel()
    server.stop()
    database.close()


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="[%(levelname)1.1s %(asctime)s %(name)s] %(message)s")
    gc.freeze()  # modules stay: each look for garbage through all of them would hold up the pages
    asyncio.run(serve(os.getppid()))


if __name__ == "__main__":
    main()
