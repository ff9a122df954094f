"""The database's tables as they are now; migrations/ has how they came to be."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Float, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jupyter_vgpu.quotas import Policy, Quota

from .rules import Rule

TEXT_MAX = 1024


class Base(DeclarativeBase):
    """All tables; what the migrations make is compared with it by a test."""


class RuleRow(Base):
    __tablename__ = "vgpu_user_rules"

    user: Mapped[str] = mapped_column(String(255), primary_key=True)
    memory: Mapped[int | None] = mapped_column(BigInteger)
    cores: Mapped[float | None] = mapped_column(Float)
    policy: Mapped[str | None] = mapped_column(String(16))
    slices: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    hours: Mapped[float | None] = mapped_column(Float)
    gpus: Mapped[int | None]

    def rule(self) -> Rule:
        policy = None if self.policy is None else Policy(self.policy)
        slices = None if self.slices is None else tuple(self.slices)
        return Rule(self.memory, self.cores, policy, slices, self.hours, self.gpus)


class ChangeRow(Base):
    __tablename__ = "vgpu_changes"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    actor: Mapped[str] = mapped_column(String(255))
    subject: Mapped[str] = mapped_column(String(255))
    field: Mapped[str] = mapped_column(String(32))
    old: Mapped[str | None] = mapped_column(String(TEXT_MAX))
    new: Mapped[str | None] = mapped_column(String(TEXT_MAX))


class MeterRow(Base):
    __tablename__ = "vgpu_meter"

    user: Mapped[str] = mapped_column(String(255), primary_key=True)
    hour: Mapped[int] = mapped_column(primary_key=True)
    held: Mapped[float] = mapped_column(Float)
    used: Mapped[float] = mapped_column(Float)


class QueueRow(Base):
    """since, at: seconds since 1970, when it was asked for and when its state changed. number, forecast: as the service
    saw it last."""

    __tablename__ = "vgpu_queue"

    user: Mapped[str] = mapped_column(String(255), primary_key=True)
    server: Mapped[str] = mapped_column(String(255), primary_key=True)
    memory: Mapped[int] = mapped_column(BigInteger)
    cores: Mapped[float] = mapped_column(Float)
    policy: Mapped[str] = mapped_column(String(16))
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    since: Mapped[float] = mapped_column(Float(53))
    state: Mapped[str] = mapped_column(String(16))
    gpu: Mapped[str] = mapped_column(String(64))
    at: Mapped[float] = mapped_column(Float(53))
    words: Mapped[str] = mapped_column(String(TEXT_MAX))
    model: Mapped[str] = mapped_column(String(64))
    exclusive: Mapped[bool]
    number: Mapped[int]
    forecast: Mapped[str] = mapped_column(String(TEXT_MAX))

    def quota(self) -> Quota:
        return Quota(self.memory, self.cores, Policy(self.policy), self.model, self.exclusive)


class LifetimeRow(Base):
    """A server with a slice that has ended."""

    __tablename__ = "vgpu_lifetimes"

    id: Mapped[int] = mapped_column(primary_key=True)
    seconds: Mapped[float] = mapped_column(Float)
