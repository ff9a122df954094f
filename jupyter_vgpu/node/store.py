"""What survives a restart of the daemon, on disk: SQLite through SQLAlchemy."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, BigInteger, Engine, Float, String, create_engine, event, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from ..quotas import Policy, Quota


@dataclass(frozen=True, slots=True)
class Tenant:
    """A slice: a quota placed on a GPU. `slot` is its place in the guard's ledger.

    until_pid: the tenant ends with that process; 0: when it is removed. owner: the user who alone may join; None: any.
    ceiling: no resize passes it; None: the GPU's own size is the end. labels: its maker's own words.
    """

    id: str
    name: str
    slot: int
    gpu: str
    quota: Quota
    created: str
    until_pid: int = 0
    owner: int | None = None
    ceiling: Quota | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Board:
    """Of a server without a slice. labels: what is said on it."""

    id: str
    name: str
    created: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What the admin tells everybody on the node. closed: no new slices meanwhile. since: seconds since 1970."""

    message: str
    closed: bool
    since: float


class _Base(DeclarativeBase):
    pass


class _Row(_Base):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    slot: Mapped[int] = mapped_column(unique=True)
    gpu: Mapped[str] = mapped_column(String(64))
    memory: Mapped[int] = mapped_column(BigInteger)
    cores: Mapped[float] = mapped_column(Float)
    policy: Mapped[str] = mapped_column(String(16))
    created: Mapped[str] = mapped_column(String(32))
    until_pid: Mapped[int] = mapped_column(default=0)
    owner: Mapped[int | None]
    ceiling: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    labels: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    model: Mapped[str | None] = mapped_column(String(64))
    exclusive: Mapped[bool | None]

    def tenant(self) -> Tenant:
        quota = Quota(self.memory, self.cores, Policy(self.policy), self.model or "", bool(self.exclusive))
        ceiling = Quota.from_json(self.ceiling) if self.ceiling else None
        return Tenant(
            self.id,
            self.name,
            self.slot,
            self.gpu,
            quota,
            self.created,
            self.until_pid,
            self.owner,
            ceiling,
            self.labels or {},
        )


class _BoardRow(_Base):
    __tablename__ = "boards"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    created: Mapped[str] = mapped_column(String(32))
    labels: Mapped[dict[str, str]] = mapped_column(JSON)


class _MaintenanceRow(_Base):
    """One row, or none."""

    __tablename__ = "maintenance"

    id: Mapped[int] = mapped_column(primary_key=True)
    message: Mapped[str] = mapped_column(String(255))
    closed: Mapped[bool]
    since: Mapped[float]


class Store:
    """Tenants, notice boards, and maintenance. Each change is one transaction, on disk when the call returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._engine: Engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _prepare)
        _Base.metadata.create_all(self._engine)
        self._add_columns()

    def _add_columns(self) -> None:
        """What an older daemon's table lacks; each may be null."""
        table = _Row.__tablename__
        have = {column["name"] for column in inspect(self._engine).get_columns(table)}
        with self._engine.begin() as connection:
            for column in _Row.__table__.columns:
                if column.name not in have:
                    kind = column.type.compile(self._engine.dialect)
                    connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {column.name} {kind}")

    def tenants(self) -> list[Tenant]:
        with Session(self._engine) as session:
            return [row.tenant() for row in session.scalars(select(_Row).order_by(_Row.slot))]

    def add(self, tenant: Tenant) -> None:
        quota = tenant.quota
        with Session(self._engine) as session, session.begin():
            session.add(
                _Row(
                    id=tenant.id,
                    name=tenant.name,
                    slot=tenant.slot,
                    gpu=tenant.gpu,
                    memory=quota.memory,
                    cores=quota.cores,
                    policy=str(quota.policy),
                    created=tenant.created,
                    until_pid=tenant.until_pid,
                    owner=tenant.owner,
                    ceiling=tenant.ceiling.as_json() if tenant.ceiling else None,
                    labels=dict(tenant.labels),
                    model=quota.model,
                    exclusive=quota.exclusive,
                )
            )

    def resize(self, tenant_id: str, quota: Quota) -> None:
        with Session(self._engine) as session, session.begin():
            row = session.get_one(_Row, tenant_id)
            row.memory, row.cores, row.policy = quota.memory, quota.cores, str(quota.policy)

    def set_labels(self, tenant_id: str, labels: Mapping[str, str]) -> None:
        with Session(self._engine) as session, session.begin():
            session.get_one(_Row, tenant_id).labels = dict(labels)

    def remove(self, tenant_id: str) -> None:
        with Session(self._engine) as session, session.begin():
            session.delete(session.get_one(_Row, tenant_id))

    def boards(self) -> list[Board]:
        with Session(self._engine) as session:
            rows = session.scalars(select(_BoardRow))
            return [Board(row.id, row.name, row.created, row.labels) for row in rows]

    def add_board(self, board: Board) -> None:
        with Session(self._engine) as session, session.begin():
            session.add(_BoardRow(id=board.id, name=board.name, created=board.created, labels=dict(board.labels)))

    def set_board_labels(self, board_id: str, labels: Mapping[str, str]) -> None:
        with Session(self._engine) as session, session.begin():
            session.get_one(_BoardRow, board_id).labels = dict(labels)

    def remove_board(self, board_id: str) -> None:
        with Session(self._engine) as session, session.begin():
            session.delete(session.get_one(_BoardRow, board_id))

    def maintenance(self) -> Maintenance | None:
        """None: the node is as usual."""
        with Session(self._engine) as session:
            row = session.get(_MaintenanceRow, 1)
            return Maintenance(row.message, row.closed, row.since) if row else None

    def set_maintenance(self, said: Maintenance | None) -> None:
        with Session(self._engine) as session, session.begin():
            if said:
                session.merge(_MaintenanceRow(id=1, message=said.message, closed=said.closed, since=said.since))
            elif row := session.get(_MaintenanceRow, 1):
                session.delete(row)

    def close(self) -> None:
        self._engine.dispose()


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")  # one wait for the disk a change, where there were four
    # a power cut must not bring back a slice that was given to another since
    connection.execute("PRAGMA synchronous=FULL")


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
