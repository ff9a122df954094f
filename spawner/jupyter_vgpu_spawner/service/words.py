"""Times and quotas in words, for the pages. Pure."""

from __future__ import annotations

from jupyter_vgpu.quotas import exact_bytes, format_bytes, format_percent

from ..rules import FIELDS, Rule
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


def format_waited(seconds: float) -> str:
    """`format_duration` of what is over."""
    return "less than a minute" if seconds < _MINUTE else format_duration(seconds)


def say_when(forecast: Forecast | None) -> str:
    """What is told of a turn, and how sure it is."""
    if forecast is None:
        return "When the turn comes can't be told yet: too few servers of this hub have ended so far."
    if forecast.middle is None:
        return "It may take longer than can be told until the turn comes."
    middle = format_duration(forecast.middle)
    if forecast.late is None:
        return f"As likely as not within {middle}, and perhaps much later."
    late = format_duration(forecast.late)
    if late == middle:
        return f"The turn comes in about {middle}."
    return f"As likely as not within {middle}; nine in ten such waits end within {late}."


def fields_of(rule: Rule) -> dict[str, str]:
    """A rule as a form has it: what is not said is empty."""
    said = {name: str(value).removesuffix(".0") for name, value in rule.as_json().items()}
    said |= {"memory": exact_bytes(rule.memory)} if rule.memory is not None else {}
    said |= {"slices": ", ".join(rule.slices)} if rule.slices is not None else {}
    return dict.fromkeys(FIELDS, "") | said


def say_value(value: str | None, field: str) -> str:
    """Of the audit log, which has bytes and percent as numbers."""
    if value is None:
        return ""
    try:
        if field == "memory":
            return format_bytes(int(value))
        return format_percent(float(value)) if field == "cores" else value
    except ValueError:  # a change of something else, with that name
        return value
