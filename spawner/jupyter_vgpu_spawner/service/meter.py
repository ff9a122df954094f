"""GPU-hours from what vgpud says of its tenants, now and then. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jupyter_vgpu.quotas import Quota

from ..database import Metered
from ..rules import USER_LABEL

_SECONDS = 3600.0
LONGEST_S = 120.0
"""More than this between two looks is not counted: the service or the daemon was away."""


def user_of(tenant: Mapping[str, Any]) -> str | None:
    """The hub's user whose server a tenant is; None: it is somebody's on the node."""
    user: str | None = tenant["labels"].get(USER_LABEL)
    return user


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    on_gpu_ns: int
    busy: bool
    node: str


class Meter:
    """Remembers the last look at each tenant; what was before the first look is not counted."""

    def __init__(self) -> None:
        self._last: dict[str, _Look] = {}

    def look(self, tenants: Iterable[Mapping[str, Any]], now: float, away: Collection[str] = ()) -> dict[str, Metered]:
        """What users held and used since the last look. now: seconds of a clock that only goes forward.

        away: nodes that do not answer; what is there is counted when they do again.
        """
        sums: dict[str, Metered] = {}
        seen = {}
        for tenant in tenants:
            user = user_of(tenant)
            if user is None:
                continue
            look = seen[tenant["id"]] = _look_at(tenant, now)
            if before := self._last.get(tenant["id"]):
                sums[user] = sums.get(user, Metered()) + _between(before, look, _kept(tenant))
        self._last = {key: look for key, look in self._last.items() if look.node in away} | seen
        return sums


def _kept(tenant: Mapping[str, Any]) -> float:
    """Percent of the GPU that nobody else can have: of a part (MIG) all of it. An older node tells of no parts."""
    gpu = tenant["gpu"]
    return float(gpu["cores"]) if gpu.get("mig") else Quota.from_json(tenant["quota"]).cores_kept


def _look_at(tenant: Mapping[str, Any], now: float) -> _Look:
    busy = tenant["tier"] == "shim" and tenant["activity"]["busy"]
    return _Look(now, int(tenant["usage"]["on_gpu_ns"]), busy, tenant["node"])


def _between(before: _Look, now: _Look, cores: float) -> Metered:
    seconds = min(max(0.0, now.at - before.at), LONGEST_S)
    held = seconds * cores / 100
    used = min(max(0, now.on_gpu_ns - before.on_gpu_ns) / 1e9, seconds)  # a restarted guard counts from zero
    if now.busy:  # in tier shim nobody counts the time on the GPU: who is at work uses the slice
        used = held
    return Metered(held / _SECONDS, used / _SECONDS)
