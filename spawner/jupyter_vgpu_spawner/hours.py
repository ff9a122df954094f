"""GPU-hours: the window that they are counted in, and how. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum

from jupyter_vgpu.hours import Balance

WEEK_HOURS = 7 * 24


class Window(StrEnum):
    """`rolling`: the last seven days. `week`: since Monday, 0:00 UTC."""

    ROLLING = "rolling"
    WEEK = "week"


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


def why_spent(balance: Balance, window: Window, now: datetime) -> str:
    """Empty while hours are left, else the reason and when there will be more."""
    if not balance.is_spent:
        return ""
    if not balance.allowed:
        return "you have no GPU-hours on this hub: ask its admins for some"
    if window is Window.WEEK:
        more = f"there are new ones on {_monday(now) + timedelta(days=7):%A, %d %B, %H:%M} UTC"
    else:
        more = "they come back seven days after they were used"
    return f"your GPU-hours are used up ({balance}); {more}"
