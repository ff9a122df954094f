"""GPU-hours of a slice's user: what is spent of what is allowed, and what follows. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

LABEL = "jupyterhub_hours"
"""What the hub's service writes on a user's slices, for the server inside."""


class End(StrEnum):
    """What follows when they are spent. `refuse`: no new server with a GPU. `stop`: running ones are stopped too."""

    REFUSE = "refuse"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Balance:
    """GPU-hours of a user in the window. allowed None: no end. grace: so many more are let pass, with a warning."""

    spent: float = 0.0
    allowed: float | None = None
    grace: float = 0.0

    @property
    def is_spent(self) -> bool:
        return self.allowed is not None and self.spent >= self.allowed + self.grace

    @property
    def left(self) -> float:
        """Hours, without the grace; of no end of them, infinitely many."""
        return math.inf if self.allowed is None else max(0.0, self.allowed - self.spent)

    def passed(self, warnings: Iterable[float]) -> float:
        """The highest of these parts of them that is spent; 0: none."""
        if self.allowed is None:
            return 0.0
        return max((part for part in warnings if self.spent >= part * self.allowed), default=0.0)

    def is_low(self, warnings: Iterable[float]) -> bool:
        """Somebody is to be warned: one of these parts is spent, or all of them."""
        return self.passed((*warnings, 1)) > 0

    def as_label(self, warnings: Iterable[float], end: End) -> str:
        """For `told`; empty where there is no end of them. To a tenth of an hour, so that it seldom changes."""
        if self.allowed is None:
            return ""
        values = {"spent": round(self.spent, 1), "allowed": self.allowed, "grace": self.grace}
        passed = self.passed((*warnings, 1))  # of the grace everybody is told
        state = "spent" if self.is_spent else "low" if passed else "enough"
        return json.dumps(values | {"state": state, "end": str(end), "passed": passed})

    def __str__(self) -> str:
        if self.allowed is None:
            return f"{self.spent:.1f} GPU-hours in this window"
        return f"{self.spent:.1f} of {self.allowed:g} GPU-hours"


def told(labels: Mapping[str, str]) -> dict[str, Any] | None:
    """What `as_label` wrote on a slice; None: nobody counts, or not in a way that this version knows.

    Hours, with `state`: `enough`, `low` or `spent`, `end`, an End, and `passed`: the part at which was warned last.
    """
    try:
        said = json.loads(labels[LABEL])
        hours = {name: float(said[name]) for name in ("spent", "allowed", "grace")}
        if said["state"] not in ("enough", "low", "spent"):
            return None
        passed = float(said.get("passed", 0))
        return {**hours, "state": said["state"], "end": str(End(said["end"])), "passed": passed}
    except (KeyError, TypeError, ValueError):
        return None
