"""Who may use how much of a GPU: the config's default, then groups, then the user, under the config's ceiling. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from jupyter_vgpu.quotas import (
    Policy,
    Quota,
    QuotaError,
    format_bytes,
    format_percent,
    is_mps,
    parse_cores,
    parse_memory,
    parse_policy,
)

GROUP_PROPERTY = "vgpu"
"""Key of a rule among a hub group's properties."""
Number = TypeVar("Number", int, float)

FIELDS = ("memory", "cores", "policy", "gpus", "slices", "hours")
USER_LABEL, DEFAULT_LABEL, HUB_LABEL = "jupyterhub_user", "jupyterhub_default", "jupyterhub_hub"
CHOSEN_LABEL, WHOLE_LABEL = "jupyterhub_chosen", "jupyterhub_whole"
"""What a spawner writes on its slices: whose it is, what the config gives that user, as JSON of a quota, and which hub
made it; what of it was chosen smaller than might be had, and what might be had, which the service brings up to date."""
NO_MEMORY = 0
"""Memory of somebody who gets no GPU."""
MAX_HOURS = 24 * 7 * 1000
MAX_GPUS = 64


@dataclass(frozen=True, slots=True)
class Rule:
    """What a group or a user is given; None: nothing is said, and what stands before holds.

    memory: bytes, 0 for no GPU. cores: percent. slices: keys of the slices that may be chosen (see `slice_key`).
    hours: GPU-hours in a window, where an hour of the whole GPU is one. gpus: servers with a slice at once, 0 for none.
    """

    memory: int | None = None
    cores: float | None = None
    policy: Policy | None = None
    slices: tuple[str, ...] | None = None
    hours: float | None = None
    gpus: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Rule:
        """Make a rule of values that came from an admin. Raises QuotaError."""
        for name in values:
            if name not in FIELDS:
                raise QuotaError(f"{str(name)[:40]!r} is no part of a GPU quota: give some of {', '.join(FIELDS)}")
        parsers: dict[str, Callable[[Any], Any]] = {
            "memory": _parse_memory,
            "cores": parse_cores,
            "policy": parse_policy,
            "gpus": parse_gpus,
            "slices": _parse_slices,
            "hours": _parse_hours,
        }
        return cls(**{name: parsers[name](value) for name, value in values.items() if value not in (None, "")})

    def as_json(self) -> dict[str, Any]:
        """What is said, by field."""
        said = {name: getattr(self, name) for name in FIELDS}
        return {name: list(value) if name == "slices" else value for name, value in said.items() if value is not None}

    @property
    def is_empty(self) -> bool:
        return self == Rule()


def _parse_memory(value: object) -> int:
    if str(value).strip().lower() in ("0", "none"):
        return NO_MEMORY
    return parse_memory(value)


def parse_gpus(value: object) -> int:
    """How many servers may have a slice at once. Raises QuotaError."""
    try:
        gpus = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else -1
    except ValueError:
        gpus = -1
    if not 0 <= gpus <= MAX_GPUS:
        raise QuotaError(
            f"gpus={str(value)[:40]!r} is no number of servers with a GPU at once: give one from 0 to {MAX_GPUS}"
        )
    return gpus


def _parse_slices(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise QuotaError(f"slices={str(value)[:40]!r} is no list of slices: give keys, such as '1GiB-25, 2GiB-50'")
    keys = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not keys:
        raise QuotaError("slices is empty: give keys, leave it out for all slices, or give memory=0 for no GPU")
    return keys


def _parse_hours(value: object) -> float:
    try:
        hours = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        hours = math.nan
    if not 0 <= hours <= MAX_HOURS:
        raise QuotaError(f"hours={str(value)[:40]!r} is no number of GPU-hours: give one from 0 to {MAX_HOURS}")
    return hours


def of_groups(rules: Iterable[Rule]) -> Rule:
    """One rule of several groups': the most that any of them gives, field by field."""
    merged = Rule()
    for rule in rules:
        merged = Rule(
            memory=_most(merged.memory, rule.memory),
            cores=_most(merged.cores, rule.cores),
            policy=Policy.BURST if Policy.BURST in (merged.policy, rule.policy) else rule.policy or merged.policy,
            gpus=_most(merged.gpus, rule.gpus),
            slices=_union(merged.slices, rule.slices),
            hours=_most(merged.hours, rule.hours),
        )
    return merged


def _most(one: Number | None, other: Number | None) -> Number | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def _union(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if one is None or other is None:
        return other if one is None else one
    return tuple(dict.fromkeys(one + other))


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What somebody may have in the end. quota None: no GPU. slices None: any that fits. hours None: no end.

    gpus: servers with a slice at once.
    sources: where each field comes from: `default`, `group`, `user` or `ceiling`.
    """

    quota: Quota | None
    slices: tuple[str, ...] | None
    hours: float | None
    sources: Mapping[str, str]
    gpus: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """The config's part: what everybody has, and what nobody passes. Of no memory: no GPU.

    gpus, most_gpus: servers with a slice at once, by default and at most. most_hours None: as many as are given.
    """

    default: Quota
    ceiling: Quota
    hours: float | None = None
    gpus: int = 1
    most_gpus: int = 1
    most_hours: float | None = None


def entitle(bounds: Bounds, group: Rule, user: Rule) -> Entitlement:
    """Default, then group, then user, each over the one before; nothing passes the ceiling.

    Memory above the ceiling is cut to it, and so are cores and hours; `burst` needs a ceiling that is `burst`.
    """
    said, sources = _said(bounds, group, user)
    ceiling = bounds.ceiling
    memory, cores, policy = said.memory or NO_MEMORY, said.cores or ceiling.cores, said.policy or Policy.HARD
    if memory > ceiling.memory:
        memory, sources["memory"] = ceiling.memory, "ceiling"
    if cores > ceiling.cores:
        cores, sources["cores"] = ceiling.cores, "ceiling"
    if policy is Policy.BURST and ceiling.policy is Policy.HARD:
        policy, sources["policy"] = Policy.HARD, "ceiling"
    gpus = said.gpus or 0
    if gpus > bounds.most_gpus:
        gpus, sources["gpus"] = bounds.most_gpus, "ceiling"
    hours, most_hours = said.hours, bounds.most_hours
    if most_hours is not None and (hours is None or hours > most_hours):
        hours, sources["hours"] = most_hours, "ceiling"
    quota = Quota(memory, cores, policy) if memory and gpus else None
    return Entitlement(quota, said.slices, hours, sources, gpus)


def cuts(rule: Rule, got: Entitlement) -> list[str]:
    """What of a user's rule the config's ceiling does not let pass, in words."""
    have = got.quota
    values = {"gpus": str(got.gpus), "hours": f"{got.hours:g}" if got.hours is not None else ""}
    if have:
        values |= {"memory": format_bytes(have.memory), "cores": format_percent(have.cores), "policy": str(have.policy)}
    elif got.sources["memory"] == "ceiling":
        values["memory"] = "0, which is no GPU"
    said = rule.as_json()
    return [
        f"the config's ceiling makes {name} {value}"
        for name, value in values.items()
        if name in said and got.sources[name] == "ceiling"
    ]


def _said(bounds: Bounds, group: Rule, user: Rule) -> tuple[Rule, dict[str, str]]:
    first = bounds.default
    said = Rule(first.memory, first.cores, first.policy, hours=bounds.hours, gpus=bounds.gpus)
    sources = dict.fromkeys(FIELDS, "default")
    for source, rule in (("group", group), ("user", user)):
        for name in FIELDS:
            if (value := getattr(rule, name)) is not None:
                said = replace(said, **{name: value})
                sources[name] = source
    return said, sources


@dataclass(frozen=True, slots=True)
class Chosen:
    """What of a slice its user chose smaller than might be had then: bytes, percent; None: all of it was taken."""

    memory: int | None = None
    cores: float | None = None

    @classmethod
    def of(cls, quota: Quota, whole: Quota | None) -> Chosen:
        """whole: what the user might have; None: nothing."""
        memory = whole is not None and quota.memory >= whole.memory
        cores = whole is not None and quota.cores >= whole.cores
        return cls(None if memory else quota.memory, None if cores else quota.cores)

    def as_label(self) -> str:
        """For `told`."""
        return json.dumps({"memory": self.memory, "cores": self.cores})

    @classmethod
    def told(cls, labels: Mapping[str, str]) -> Chosen | None:
        """What `as_label` wrote on a slice; None: it does not say."""
        try:
            said = json.loads(labels[CHOSEN_LABEL])
            memory, cores = said["memory"], said["cores"]
            return cls(None if memory is None else int(memory), None if cores is None else float(cores))
        except (KeyError, TypeError, ValueError):
            return None


def as_whole(quota: Quota | None) -> str:
    """For a slice's label; None: its user may have no GPU any more."""
    return json.dumps(quota.as_json() if quota else None)


def is_whole(labels: Mapping[str, str], quota: Quota | None) -> bool | None:
    """Is this what might be had when the slice was made, or followed last? None: it does not say."""
    try:
        said = json.loads(labels[WHOLE_LABEL])
        return (Quota.from_json(said) if said else None) == quota
    except (KeyError, TypeError, ValueError):
        return None


def follow(held: Quota, chosen: Chosen, after: Entitlement) -> Quota | None:
    """What becomes of a running slice when its user's quota changes; None: it stays as it is.

    Field by field: memory, or compute, of which all was taken is all that there is; what was chosen smaller is no more
    than that, however often the quota falls and rises.
    Nobody loses a slice by this: a user who may have no GPU any more keeps it until the server stops.
    """
    if after.quota is None:
        return None
    memory = after.quota.memory if chosen.memory is None else min(chosen.memory, after.quota.memory)
    cores = after.quota.cores if chosen.cores is None else min(chosen.cores, after.quota.cores)
    if is_mps(held.model):  # where compute is fixed when the server starts
        followed = replace(held, memory=memory)
    else:
        followed = replace(held, memory=memory, cores=cores, policy=after.quota.policy)
    return None if followed == held else followed
