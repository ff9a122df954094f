"""Who waits for a GPU: the queue on disk. The hub's spawner puts a server into it, the service takes it out."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jupyter_vgpu.quotas import Quota
from jupyter_vgpu.turn import Stage

from .tables import TEXT_MAX, LifetimeRow, QueueRow
from .turns import Waiting

LIFETIMES_KEPT = 500
SERVERS_MAX = 5
"""Of one user."""
log = logging.getLogger("vgpu.queue")


class TooMany(Exception):
    """The user has as many servers in the queue as may be; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A server in the queue. options: the `user_options` that it starts with. at: when it came to this stage, or was
    told its words. gpu: the UUID of the one that a called server's room is kept on. number, when: as the service saw it
    last; 1 is next, 0: it is not known."""

    waiting: Waiting
    options: Mapping[str, Any]
    stage: Stage
    at: float
    words: str = ""
    gpu: str = ""
    number: int = 0
    when: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return (self.waiting.user, self.waiting.server)

    @property
    def name(self) -> str:
        """As vgpud names its slice."""
        return f"{self.waiting.user}/{self.waiting.server}"


def promised(entries: Iterable[Entry], names: Collection[str]) -> list[Entry]:
    """Whose room is kept: called, and the slice is not there yet. names: of the slices that are."""
    return [entry for entry in entries if entry.stage == Stage.CALLED and entry.name not in names]


class QueueStore:
    """Each call is one transaction. Raises DatabaseError."""

    def __init__(self, engine: Engine, writer: Engine) -> None:
        self._engine, self._writer = engine, writer

    def entries(self) -> list[Entry]:
        """All, the longest first."""
        with Session(self._engine) as session:
            return _entries(session.scalars(select(QueueRow).order_by(QueueRow.since)))

    def entry(self, user: str, server: str) -> Entry | None:
        """None: it is not in the queue."""
        with Session(self._engine) as session:
            row = session.get(QueueRow, (user, server))
            return next(iter(_entries([row] if row else [])), None)

    def join(self, user: str, server: str, quota: Quota, options: Mapping[str, Any]) -> None:
        """Wait from now on. Who waits already and asks for no more than before keeps the place. Raises TooMany."""
        try:
            self._join(user, server, quota, options)
        except IntegrityError:  # the same form, sent twice
            self._join(user, server, quota, options)

    def _join(self, user: str, server: str, quota: Quota, options: Mapping[str, Any]) -> None:
        now = time.time()
        with Session(self._writer) as session, session.begin():
            row = session.get(QueueRow, (user, server), with_for_update=True)
            others = select(func.count()).where(
                QueueRow.user == user, QueueRow.server != server, QueueRow.state != str(Stage.ENDED)
            )
            if (session.scalar(others) or 0) >= SERVERS_MAX:
                raise TooMany(f"{SERVERS_MAX} servers of yours wait already: take one of them out of the queue first")
            keeps = row is not None and row.state != Stage.ENDED and _is_no_more(quota, row.quota())
            session.merge(
                QueueRow(
                    user=user,
                    server=server,
                    memory=quota.memory,
                    cores=quota.cores,
                    policy=str(quota.policy),
                    options=dict(options),
                    since=row.since if row is not None and keeps else now,
                    state=str(Stage.WAITING),
                    gpu="",
                    at=now,
                    words="",
                    model=quota.model,
                    exclusive=quota.exclusive,
                    number=0,
                    forecast="",
                )
            )

    def leave(self, user: str, server: str) -> bool:
        """False: it was not there."""
        with Session(self._writer) as session, session.begin():
            found = session.execute(delete(QueueRow).where(QueueRow.user == user, QueueRow.server == server))
            return bool(found.rowcount)  # type: ignore[attr-defined]

    def move(self, entry: Entry, stage: Stage, words: str = "", gpu: str = "") -> bool:
        """To another stage. gpu: where room is kept for it. False: it is gone, or not as it was."""
        user, server = entry.key
        there = (QueueRow.user == user, QueueRow.server == server, QueueRow.state == str(entry.stage))
        values = {"state": str(stage), "at": time.time(), "words": words[:TEXT_MAX], "gpu": gpu}
        values |= {"number": 0, "forecast": ""}  # until it is told anew
        with Session(self._writer) as session, session.begin():
            found = session.execute(update(QueueRow).where(*there, QueueRow.at == entry.at).values(values))
            return bool(found.rowcount)  # type: ignore[attr-defined]

    def say(self, entry: Entry, words: str) -> None:
        """What the user has to know at this stage."""
        user, server = entry.key
        there = (QueueRow.user == user, QueueRow.server == server, QueueRow.at == entry.at)
        with Session(self._writer) as session, session.begin():
            session.execute(update(QueueRow).where(*there).values(words=words[:TEXT_MAX], at=time.time()))

    def note_standings(self, standings: Mapping[tuple[str, str], tuple[int, str]]) -> None:
        """Of servers, by user and name: their number, and in words when that will be."""
        with Session(self._writer) as session, session.begin():
            for (user, server), (number, when) in standings.items():
                there = (QueueRow.user == user, QueueRow.server == server, QueueRow.state == str(Stage.WAITING))
                session.execute(update(QueueRow).where(*there).values(number=number, forecast=when[:TEXT_MAX]))

    def note_lifetime(self, seconds: float) -> None:
        """A server with a slice has ended after so long."""
        with Session(self._writer) as session, session.begin():
            row = LifetimeRow(seconds=seconds)
            session.add(row)
            session.flush()
            session.execute(delete(LifetimeRow).where(LifetimeRow.id <= row.id - LIFETIMES_KEPT))

    def lifetimes(self) -> list[float]:
        """Of the latest servers that have ended, seconds."""
        with Session(self._engine) as session:
            return list(session.scalars(select(LifetimeRow.seconds)))


def _is_no_more(quota: Quota, before: Quota) -> bool:
    """What may be had where the other may."""
    same = quota.where in (before.where, (before.model, False))
    return same and quota.is_within(before)


def _entries(rows: Iterable[QueueRow]) -> list[Entry]:
    """Those that can be read: one that can't must not keep the others from their turn."""
    found = []
    for row in rows:
        try:
            waiting = Waiting(row.user, row.server, row.quota(), row.since)
            found.append(
                Entry(waiting, row.options, Stage(row.state), row.at, row.words, row.gpu, row.number, row.forecast)
            )
        except ValueError:
            log.exception("the queue has a row that can't be read: %s/%s", row.user, row.server)
    return found
