"""Slices that hold GPU memory and rest: after how long something is done about it, and what. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

LABEL = "jupyterhub_idle"
"""What a spawner writes on its slices, for the server inside: a rule as JSON."""


class Action(StrEnum):
    """`notify`: the user is told. `kernel`: and kernels that rest are shut down. `server`: the server is stopped."""

    NOTIFY = "notify"
    KERNEL = "kernel"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class IdleRule:
    """What becomes of who holds GPU memory and launches nothing for so many seconds."""

    seconds: float
    action: Action

    @classmethod
    def after(cls, minutes: float, action: str) -> IdleRule:
        """As an admin says it. Raises ValueError."""
        if minutes <= 0:
            raise ValueError(f"gpu_idle_minutes={minutes} is no time: give minutes above 0, or None to stop nothing")
        if action not in list(Action):
            raise ValueError(f"gpu_idle_action={action!r} is unknown: give one of {', '.join(Action)}")
        return cls(60 * minutes, Action(action))

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> IdleRule | None:
        """The rule on a slice; None: there is none that this version knows."""
        try:
            said = json.loads(labels[LABEL])
            return cls(float(said["seconds"]), Action(said["action"]))
        except (KeyError, TypeError, ValueError):
            return None

    def as_label(self) -> str:
        """For `of`."""
        return json.dumps({"seconds": self.seconds, "action": str(self.action)})

    def until(self, use: Mapping[str, Any], since: float) -> float | None:
        """When it is enough, for who rests since then; None: it works, or holds nothing.

        use: `memory` in bytes and `busy`. Seconds since 1970.
        """
        return None if use["busy"] or not use["memory"] else since + self.seconds
