"""GPU-hours: the window that they are counted in, and what is left. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

WEEK_HOURS = 7 * 24


class Window(StrEnum):
    """`rolling`: the last seven days. `week`: since Monday, 0:00 UTC."""

    ROLLING = "rolling"
    WEEK = "week"


class End(StrEnum):
    """What follows when they are spent. `refuse`: no new server with a GPU. `stop`: running ones are stopped too."""

    REFUSE = "refuse"
    STOP = "stop"


class Measure(StrEnum):
    """`held`: for as long as a slice is held, by its percent. `used`: for the time that its work was on the GPU."""

    HELD = "held"
    USED = "used"


def hour_of(now: datetime) -> int:
    """Hours since 1970."""
    return int(now.timestamp()) // 3600


def window_start(window: Window, now: datetime) -> int:
    """The first hour that counts."""
    if window is Window.ROLLING:
        return hour_of(now) - WEEK_HOURS + 1
    return hour_of(_monday(now))


def _monday(now: datetime) -> datetime:
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())


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

    def __str__(self) -> str:
        if self.allowed is None:
            return f"{self.spent:.1f} GPU-hours in this window"
        return f"{self.spent:.1f} of {self.allowed:g} GPU-hours"


def why_spent(balance: Balance, window: Window, now: datetime) -> str:
    """Empty while hours are left, else the reason and when there will be more."""
    if not balance.is_spent:
        return ""
    if window is Window.WEEK:
        more = f"there are new ones on {_monday(now) + timedelta(days=7):%A, %d %B, %H:%M} UTC"
    else:
        more = "they come back seven days after they were used"
    return f"your GPU-hours are used up ({balance}); {more}"
