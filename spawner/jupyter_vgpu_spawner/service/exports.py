"""What other programs read: tables as CSV, and numbers for Prometheus."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from tornado import web

from jupyter_vgpu.api import Refused

from ..database import DatabaseError
from .handler import ServiceHandler
from .manager import Person
from .metrics import exposition

log = logging.getLogger("vgpu.service")


class TextHandler(ServiceHandler):
    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self.words_of(**kwargs))


class CsvHandler(TextHandler):
    def csv(self, name: str, rows: Iterable[Iterable[object]]) -> None:
        out = io.StringIO()
        csv.writer(out).writerows([as_cell(cell) for cell in row] for row in rows)
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')
        self.finish(out.getvalue())


def as_cell(cell: object) -> str:
    """A name that begins like a formula must not become one in somebody's spreadsheet."""
    text = "" if cell is None else str(cell)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


class AuditCsvHandler(CsvHandler):
    @web.authenticated
    async def get(self) -> None:
        rows = [(c.at.isoformat(), c.actor, c.subject, c.field, c.old, c.new) for c in await self.manager.changes()]
        self.csv("vgpu-audit.csv", [("time", "who", "whose", "what", "from", "to"), *rows])


class UsersCsvHandler(CsvHandler):
    @web.authenticated
    async def get(self) -> None:
        state = await self.manager.state()
        if state.is_partial:  # zeros that mean "not known" would be billed
            raise Refused(503, f"The table can't be made now: {'; '.join(state.troubles)}")
        rows = [
            (
                person.name,
                " ".join(person.groups),
                *_quota_cells(person),
                "" if state.is_blind else len(person.tenants),
                f"{person.spent.held:.3f}",
                f"{person.spent.used:.3f}",
            )
            for person in state.people
        ]
        head = ("user", "groups", "memory", "cores", "policy", "gpus", "hours", "servers", "hours_held", "hours_used")
        self.csv("vgpu-users.csv", [head, *rows])


def _quota_cells(person: Person) -> tuple[object, ...]:
    entitlement = person.entitlement
    if entitlement is None:
        return (person.rule.memory, person.rule.cores, person.rule.policy, person.rule.gpus, person.rule.hours)
    quota = entitlement.quota
    limits = (quota.memory, quota.cores, quota.policy, entitlement.gpus) if quota else (0, 0, "", 0)
    return (*limits, entitlement.hours)


class MetricsHandler(TextHandler):
    """For Prometheus, with a token that has the scope."""

    @web.authenticated
    async def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        since = None
        try:
            since = await self.dispatcher.since() if self.dispatcher else None
        except DatabaseError as error:
            log.error("%s", error)
        self.finish(exposition(await self.manager.state(), since))
