"""Tells users where they stand in the queue: in their servers, on slices and on the boards of who has none, and on the
spawn page."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from jupyter_vgpu.api import Json
from jupyter_vgpu.client import DaemonError
from jupyter_vgpu.turn import LABEL, Stage, Turn

from ..errors import NO_GPU_FOR, START_WITHOUT
from ..fleet import Fleet
from ..rules import HUB_LABEL
from .dispatcher import CALL_S, Dispatcher, Standing
from .meter import user_of

log = logging.getLogger("vgpu.service")

_STEPS = (1, 2, 3, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 1440)
"""Minutes that are told: no finer than anybody can know, so that what is said seldom changes."""
_FIRST = (Stage.CALLED, Stage.WAITING, Stage.ENDED)


class News:
    """Raises DaemonError, HubError, DatabaseError."""

    def __init__(self, dispatcher: Dispatcher, fleet: Fleet, hub: str) -> None:
        self._dispatcher, self._fleet, self._hub = dispatcher, fleet, hub
        self._is_quiet = False  # nothing is said anywhere

    async def tell(self) -> None:
        """Called now and then."""
        standings = await self._dispatcher.standings()
        if not standings and self._is_quiet:
            return
        await self._dispatcher.note(standings)
        view = await self._fleet.servers()
        said = {user: turn_of(theirs).as_label() for user, theirs in _by_user(standings).items()}
        missed = bool(view.away)
        for server in [*view.tenants, *view.boards]:
            # what another hub says to its users on the same node is that hub's
            if user_of(server) and server["labels"].get(HUB_LABEL, "") == self._hub:
                missed |= not await self._say(server, said.get(str(user_of(server)), ""))
        self._is_quiet = not standings and not missed

    async def _say(self, server: Json, label: str) -> bool:
        """False: it was not heard."""
        if server["labels"].get(LABEL, "") == label:
            return True
        try:
            await self._fleet.ask(server, "PATCH", "/labels", {LABEL: label or None})
        except DaemonError as error:  # such as one that ended meanwhile
            log.debug("%s is not told: %s", server["name"], error)
            return False
        return True


def _by_user(standings: Iterable[Standing]) -> dict[str, list[Standing]]:
    found: dict[str, list[Standing]] = {}
    for standing in standings:
        found.setdefault(standing.entry.waiting.user, []).append(standing)
    return found


def turn_of(standings: Iterable[Standing]) -> Turn:
    """Of a user's servers in the queue the one to tell of: who is called, else the next, else who got none last."""
    standing = min(standings, key=lambda each: (_FIRST.index(each.entry.stage), each.number, -each.entry.at))
    entry, forecast = standing.entry, standing.forecast
    kept = entry.stage == Stage.CALLED and entry.words
    return Turn(
        server=entry.waiting.server,
        stage=entry.stage,
        number=standing.number,
        minutes=_about(forecast.middle) if forecast else None,
        until=math.floor(entry.at + CALL_S) if kept else None,
        words=entry.words.removeprefix(NO_GPU_FOR).removesuffix(START_WITHOUT) if entry.stage == Stage.ENDED else "",
    )


def _about(seconds: float | None) -> int | None:
    if seconds is None:
        return None
    return next((minutes for minutes in _STEPS if seconds <= 60 * minutes), None)
