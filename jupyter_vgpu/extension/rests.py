"""Who holds GPU memory and rests, and until when that is let be. Pure: times come from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..idle import Action, IdleRule
from .attribution import Json

KERNELS = ("notebook", "console", "kernel")


class Rests:
    """Remembers since when those rest who have not worked yet: vgpud knows of work alone."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def look(self, rule: IdleRule, view: Mapping[str, Any], rows: Sequence[Json], now: float) -> list[Json]:
        """Each that rests, with the time that it may; of the whole server one, without a name, where it is stopped."""
        if rule.action is Action.KERNEL:
            return self._kernels(rule, rows, now)
        use = {"memory": view["usage"]["memory"], "busy": view["activity"]["busy"]}
        until = rule.until(use, view["activity"]["last_active"])
        return [] if until is None else [{"kind": "server", "id": None, "name": "", "until": until}]

    def _kernels(self, rule: IdleRule, rows: Sequence[Json], now: float) -> list[Json]:
        found, seen = [], {}
        for row in rows:
            if row["kind"] not in KERNELS:
                continue
            since = row["last_active"] or self._seen.get(row["id"], now)
            until = rule.until(row, since)
            if until is not None:
                seen[row["id"]] = since
                found.append({"kind": row["kind"], "id": row["id"], "name": row["name"], "until": until})
        self._seen = seen
        return found
