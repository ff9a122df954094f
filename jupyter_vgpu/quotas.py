"""Quotas: how they are written, checked and shown. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MIN_MEMORY = 64 << 20
MAX_MEMORY = 1 << 50

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?\s*$", re.IGNORECASE)


class QuotaError(ValueError):
    """A quota that nobody can have; the message names the value, the allowed set and the way out."""


class Policy(StrEnum):
    """`hard`: never above its percent. `burst`: guaranteed its percent, and may use what is idle."""

    HARD = "hard"
    BURST = "burst"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may use of one GPU.

    memory: bytes, CUDA context included. cores: percent of the GPU, 0 < cores <= 100.
    """

    memory: int
    cores: float
    policy: Policy = Policy.HARD

    @classmethod
    def parse(cls, memory: object, cores: object, policy: object = Policy.HARD) -> Quota:
        """Make a quota of values that came from a user. Raises QuotaError."""
        return cls(parse_memory(memory), parse_cores(cores), parse_policy(policy))

    def is_within(self, ceiling: Quota) -> bool:
        """Nothing of it is above the ceiling's, and it is no `burst` below a `hard` one."""
        burst = self.policy is Policy.HARD or ceiling.policy is Policy.BURST
        return self.memory <= ceiling.memory and self.cores <= ceiling.cores and burst

    def as_json(self) -> dict[str, int | float | str]:
        """As the daemon's API has it."""
        return {"memory": self.memory, "cores": self.cores, "policy": str(self.policy)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Quota:
        """Of what as_json made. Raises KeyError, TypeError or ValueError for what is no such thing."""
        return cls(int(values["memory"]), float(values["cores"]), Policy(values["policy"]))

    def __str__(self) -> str:
        return f"{format_bytes(self.memory)}, {format_percent(self.cores)} {self.policy}"


def share_now(quota: Quota, at_work: Sequence[float]) -> float:
    """Percent of the GPU's time for a tenant, beside others that are at work with these percents of their own.

    Promises above 100 percent shrink in proportion; `burst` takes what nobody at work was promised.
    """
    promised = quota.cores + sum(at_work)
    if promised > 100:
        return quota.cores * 100 / promised
    return 100 - sum(at_work) if quota.policy is Policy.BURST else quota.cores


def parse_memory(value: object, name: str = "memory") -> int:
    """Bytes of `4G`, `"512 MiB"`, `4294967296`. Units are powers of 1024. Raises QuotaError, which says `name`."""
    match = _SIZE.match(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    if match is None or len(str(value)) > 40:
        raise QuotaError(
            f"{name}={_shown(value)} is not a size: give a number of bytes, or one with K, M, G or T, such as '4G'"
        )
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        raise QuotaError(
            f"{name}={_shown(value)} is not a usable size: give from {format_bytes(MIN_MEMORY)}, "
            f"and not more than the GPU has"
        )
    return size


def parse_cores(value: object) -> float:
    """Percent of one GPU's compute. Raises QuotaError."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        cores = float(value.strip().removesuffix("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        cores = math.nan
    # a thousandth of a percent is the finest share that the guard knows
    if not 0.001 <= cores <= 100:
        raise QuotaError(f"cores={_shown(value)} is not a percentage of one GPU: give a number above 0 and up to 100")
    return cores


def parse_policy(value: object) -> Policy:
    """Raises QuotaError."""
    try:
        return Policy(str(value))
    except ValueError:
        allowed = " or ".join(repr(str(policy)) for policy in Policy)
        raise QuotaError(f"policy={_shown(value)} is not a policy: give {allowed}") from None


def format_bytes(size: float) -> str:
    """`4 GiB`, `512 MiB`: as people read it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = _UNITS[unit[0]]
        if abs(size) >= factor:
            return f"{size / factor:.3g} {unit}" if size / factor < 1000 else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} B"


def exact_bytes(size: int) -> str:
    """`4G`, `4.5G` as `4608M`: short, and what `parse_memory` reads back without loss."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def format_percent(value: float) -> str:
    """`25 %`."""
    return f"{value:.3g} %"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
