"""Users' quotas, who changed them, what was used, who waits: on any database of SQLAlchemy's; tested on two.

The hub's spawner reads it; the service writes it. The tables' history is in migrations/.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, delete, event, func, select
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from .queue_store import QueueStore
from .rules import FIELDS, Rule
from .tables import TEXT_MAX, ChangeRow, MeterRow, RuleRow

_MIGRATIONS = Path(__file__).parent / "migrations"
# A hub must not stand still because its database does, or the network on the way.
_POSTGRESQL_PATIENCE = {
    "connect_timeout": 5,
    "tcp_user_timeout": 5000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
}
STATEMENT_MS = 10_000
"""So long a statement may take there, waiting for others' locks as well; SQLite waits as long."""
DatabaseError = SQLAlchemyError
MigrationError = CommandError


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the audit log. subject: a user's or server's name. old, new: as text; None: nothing was said."""

    at: datetime
    actor: str
    subject: str
    field: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Metered:
    """GPU-hours: an hour of a whole GPU is one. held: of slices, by their percent. used: of time on the GPU."""

    held: float = 0.0
    used: float = 0.0

    def __add__(self, other: Metered) -> Metered:
        return Metered(self.held + other.held, self.used + other.used)


class Database:
    """Each call is one transaction, on disk when it returns. Raises DatabaseError."""

    def __init__(self, url: str) -> None:
        backend = make_url(url).get_backend_name()
        patience = _POSTGRESQL_PATIENCE if backend == "postgresql" else {}
        self._engine: Engine = create_engine(url, pool_pre_ping=True, connect_args=patience)
        self._writer = self._engine.execution_options(writes=True)
        self.queue = QueueStore(self._engine, self._writer)
        if backend == "sqlite":
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        if backend == "postgresql":
            event.listen(self._engine, "connect", _prepare_postgresql)

    def upgrade(self, revision: str = "head") -> None:
        """Bring the tables to a revision, by default the newest, with what is in them.

        Raises DatabaseError; MigrationError where a newer version of this package was at work there.
        """
        self._migrate(command.upgrade, revision)

    def downgrade(self, revision: str) -> None:
        """Back to an older revision; what that has no place for is lost."""
        self._migrate(command.downgrade, revision)

    def _migrate(self, how: Callable[[Config, str], None], revision: str) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self._writer.begin() as connection:
            config.attributes["connection"] = connection
            if connection.dialect.name == "postgresql":  # a large table takes its time
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            how(config, revision)

    def close(self) -> None:
        self._engine.dispose()

    # --- quotas ---

    def rule(self, user: str) -> Rule:
        """What is said of a user; an empty rule if nothing is."""
        with Session(self._engine) as session:
            row = session.get(RuleRow, user)
            return row.rule() if row else Rule()

    def rules(self) -> dict[str, Rule]:
        """By user, of all of whom something is said."""
        with Session(self._engine) as session:
            return {row.user: row.rule() for row in session.scalars(select(RuleRow))}

    def set_rule(self, user: str, rule: Rule, actor: str) -> list[Change]:
        """Say this of a user instead of what was said before; an empty rule: nothing. Returns what changed."""
        try:
            return self._set_rule(user, rule, actor)
        except IntegrityError:  # another said something of the same user for the first time, at the same moment
            return self._set_rule(user, rule, actor)

    def _set_rule(self, user: str, rule: Rule, actor: str) -> list[Change]:
        with Session(self._writer) as session, session.begin():
            row = session.get(RuleRow, user, with_for_update=True)
            before = row.rule() if row else Rule()
            changes = [
                Change(_now(), actor, user, name, _text(getattr(before, name)), _text(getattr(rule, name)))
                for name in FIELDS
                if getattr(before, name) != getattr(rule, name)
            ]
            if row and rule.is_empty:
                session.delete(row)
            elif not rule.is_empty:
                session.merge(
                    RuleRow(
                        user=user,
                        memory=rule.memory,
                        cores=rule.cores,
                        policy=None if rule.policy is None else str(rule.policy),
                        slices=None if rule.slices is None else list(rule.slices),
                        hours=rule.hours,
                        gpus=rule.gpus,
                    )
                )
            session.add_all(_row(change) for change in changes)
        return changes

    # --- audit ---

    def note(self, actor: str, subject: str, field: str, old: str | None, new: str | None) -> None:
        """Something else that an admin did."""
        with Session(self._writer) as session, session.begin():
            session.add(_row(Change(_now(), actor, subject, field, old, new)))

    def changes(self, limit: int | None = None) -> list[Change]:
        """The audit log, newest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(ChangeRow).order_by(ChangeRow.id.desc()).limit(limit))
            return [Change(_in_utc(row.at), row.actor, row.subject, row.field, row.old, row.new) for row in rows]

    # --- GPU-hours ---

    def meter(self, hour: int, more: Mapping[str, Metered]) -> None:
        """Add to what users held and used in an hour, counted in hours since 1970."""
        try:
            self._add_to_meter(hour, more)
        except IntegrityError:  # another service counted the same user's first minute of this hour
            self._add_to_meter(hour, more)

    def _add_to_meter(self, hour: int, more: Mapping[str, Metered]) -> None:
        with Session(self._writer) as session, session.begin():
            # all at once: one by one, a thousand users would keep the service busy for half a second
            there = select(MeterRow).where(MeterRow.hour == hour).order_by(MeterRow.user).with_for_update()
            rows = {row.user: row for row in session.scalars(there)}
            for user, metered in sorted(more.items()):
                row = rows.get(user)
                if row is None:
                    row = MeterRow(user=user, hour=hour, held=0.0, used=0.0)
                    session.add(row)
                row.held += metered.held
                row.used += metered.used

    def metered(self, since_hour: int, users: Iterable[str] | None = None) -> dict[str, Metered]:
        """Sums by user since the beginning of an hour; of all users, or of these."""
        sums = select(MeterRow.user, func.sum(MeterRow.held), func.sum(MeterRow.used)).group_by(MeterRow.user)
        sums = sums.where(MeterRow.hour >= since_hour)
        if users is not None:
            sums = sums.where(MeterRow.user.in_(list(users)))
        with Session(self._engine) as session:
            return {user: Metered(held, used) for user, held, used in session.execute(sums)}

    def by_day(self, since_day: int, users: Iterable[str]) -> dict[str, dict[int, Metered]]:
        """Of these users, by day since 1970 (UTC), from a day on."""
        day = (MeterRow.hour // 24).label("day")
        sums = select(MeterRow.user, day, func.sum(MeterRow.held), func.sum(MeterRow.used))
        sums = sums.where(MeterRow.hour >= 24 * since_day, MeterRow.user.in_(list(users))).group_by(MeterRow.user, day)
        found: dict[str, dict[int, Metered]] = {}
        with Session(self._engine) as session:
            for user, number, held, used in session.execute(sums):
                found.setdefault(user, {})[int(number)] = Metered(held, used)
        return found

    def forget_meter(self, before_hour: int) -> None:
        """Drop what is older than any window."""
        with Session(self._writer) as session, session.begin():
            session.execute(delete(MeterRow).where(MeterRow.hour < before_hour))


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # else Python begins a transaction only when something is written
    connection.execute(f"PRAGMA busy_timeout={STATEMENT_MS}")
    connection.execute("PRAGMA journal_mode=WAL")  # readers don't wait for the writer
    connection.execute("PRAGMA synchronous=FULL")  # a power cut loses nothing that was answered for


def _prepare_postgresql(connection: Any, _: object) -> None:
    # an option of the connection would say the same, but poolers in between refuse it
    connection.cursor().execute(f"SET statement_timeout = {STATEMENT_MS}")
    connection.commit()  # else a rollback takes it back


def _begin_sqlite(connection: Connection) -> None:
    # who reads first and writes then must be the only one from the beginning
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _row(change: Change) -> ChangeRow:
    return ChangeRow(
        at=change.at, actor=change.actor, subject=change.subject, field=change.field, old=change.old, new=change.new
    )


def _text(value: object) -> str | None:
    if value is None:
        return None
    return (", ".join(value) if isinstance(value, tuple) else str(value))[:TEXT_MAX]


def _in_utc(time: datetime) -> datetime:
    """SQLite gives it back without a zone, PostgreSQL in the session's."""
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _now() -> datetime:
    return datetime.now(UTC)
