"""GPU-hours of a slice's user: what is spent of what is allowed, and what follows. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

    def is_low(self, part: float) -> bool:
        """So much of them is spent, or more."""
        return self.allowed is not None and self.spent >= part * self.allowed

    def as_label(self, warning: float, end: End) -> str:
        """For `told`; empty where there is no end of them. To a tenth of an hour, so that it seldom changes."""
        if self.allowed is None:
            return ""
        values = {"spent": round(self.spent, 1), "allowed": self.allowed, "grace": self.grace}
        state = "spent" if self.is_spent else "low" if self.is_low(warning) else "enough"
        return json.dumps(values | {"state": state, "end": str(end)})

    def __str__(self) -> str:
        if self.allowed is None:
            return f"{self.spent:.1f} GPU-hours in this window"
        return f"{self.spent:.1f} of {self.allowed:g} GPU-hours"


def told(labels: Mapping[str, str]) -> dict[str, Any] | None:
    """What `as_label` wrote on a slice; None: nobody counts, or not in a way that this version knows.

    Hours, with `state`: `enough`, `low` or `spent`, and `end`, an End.
    """
    try:
        said = json.loads(labels[LABEL])
        hours = {name: float(said[name]) for name in ("spent", "allowed", "grace")}
        if said["state"] not in ("enough", "low", "spent"):
            return None
        return {**hours, "state": said["state"], "end": str(End(said["end"]))}
    except (KeyError, TypeError, ValueError):
        return None
