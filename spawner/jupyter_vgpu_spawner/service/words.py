"""Times in words, for the queue's pages. Pure."""

from __future__ import annotations

from ..turns import Forecast

_MINUTE, _HOUR = 60.0, 3600.0


def format_duration(seconds: float) -> str:
    """`a minute`, `25 minutes`, `3 hours`: no finer than anybody can know."""
    if seconds < 1.5 * _MINUTE:
        return "a minute"
    if seconds < 10 * _MINUTE:
        return f"{round(seconds / _MINUTE)} minutes"
    if seconds < 100 * _MINUTE:
        return f"{5 * round(seconds / _MINUTE / 5)} minutes"
    return f"{round(seconds / _HOUR)} hours"


def say_when(forecast: Forecast | None) -> str:
    """What is told of a turn, and how sure it is."""
    if forecast is None:
        return "When that will be can't be told yet: too few servers of this hub have ended so far."
    if forecast.middle is None:
        return "That may take longer than can be told."
    middle = format_duration(forecast.middle)
    if forecast.late is None:
        return f"As likely as not within {middle}, and perhaps much later."
    late = format_duration(forecast.late)
    if late == middle:
        return f"That will be in about {middle}."
    return f"As likely as not within {middle}; nine in ten such waits end within {late}."
