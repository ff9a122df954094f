"""Quotas: how they are written, checked and shown. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

MIN_MEMORY = 64 << 20
MAX_MEMORY = 1 << 50
MODEL_MAX = 64
MPS = "MPS"
"""What a GPU is called that NVIDIA's Multi-Process Service shares; it is for slices that ask for it alone."""
MIG = "MIG"
"""What each part of a GPU in MIG mode is called, and its name goes on from there: `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
Such a part is a GPU of its own, for one slice at a time that asks for it."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_PART = re.compile(r"(?<!\w)(MIG(?!\w)|\d+g\.\d+gb)", re.IGNORECASE)
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?\s*$", re.IGNORECASE)


FIELDS = ("memory", "cores", "policy", "model", "exclusive")
"""Of a quota, as config and API have them; the last two are for a new slice alone."""


class QuotaError(ValueError):
    """A quota that nobody can have; the message names the value, the allowed set and the way out."""


class Policy(StrEnum):
    """`hard`: never above its percent. `burst`: guaranteed its percent, and may use what is idle."""

    HARD = "hard"
    BURST = "burst"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may use of one GPU.

    memory: bytes, CUDA context included. cores: percent of the GPU, 0 < cores <= 100. model: only of a GPU that is
    called so (see `is_called`); empty: of any. exclusive: nobody else is on that GPU. The last two hold from the
    beginning to the end of a slice.
    """

    memory: int
    cores: float
    policy: Policy = Policy.HARD
    model: str = ""
    exclusive: bool = False

    @classmethod
    def parse(
        cls,
        memory: object,
        cores: object,
        policy: object = Policy.HARD,
        model: object = "",
        exclusive: object = False,
    ) -> Quota:
        """Make a quota of values that came from a user. Raises QuotaError."""
        where = parse_model(model), parse_exclusive(exclusive)
        return cls(parse_memory(memory), parse_cores(cores), parse_policy(policy), *where)

    def is_within(self, ceiling: Quota) -> bool:
        """Nothing of it is above the ceiling's, and it is no `burst` below a `hard` one."""
        burst = self.policy is Policy.HARD or ceiling.policy is Policy.BURST
        return self.memory <= ceiling.memory and self.cores <= ceiling.cores and burst

    @property
    def where(self) -> tuple[str, bool]:
        """What holds from the beginning to the end of a slice: model and exclusive."""
        return self.model, self.exclusive

    @property
    def cores_kept(self) -> float:
        """Percent of the GPU that nobody else can have."""
        return 100.0 if self.exclusive and not names_part(self.model) else self.cores

    def as_json(self) -> dict[str, int | float | str | bool]:
        """As the daemon's API has it: model and exclusive where they are said."""
        said: dict[str, int | float | str | bool] = {"memory": self.memory, "cores": self.cores}
        said["policy"] = str(self.policy)
        if self.model:
            said["model"] = self.model
        if self.exclusive:
            said["exclusive"] = True
        return said

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Quota:
        """Of what as_json made. Raises KeyError, TypeError or ValueError for what is no such thing."""
        model, exclusive = str(values.get("model", "")), bool(values.get("exclusive", False))
        return cls(int(values["memory"]), float(values["cores"]), Policy(values["policy"]), model, exclusive)

    def __str__(self) -> str:
        where = f" on {self.model}" if self.model else ""
        alone = ", nobody else on it" if self.exclusive else ""
        return f"{format_bytes(self.memory)}, {format_percent(self.cores)} {self.policy}{where}{alone}"


@lru_cache(maxsize=4096)
def is_called(model: str, names: tuple[str, ...]) -> bool:
    """Is a GPU of these names (its model, and its labels) what `model` asks for? Whole words of a name will do.

    `H100` is the `NVIDIA H100 80GB HBM3`, and `L4` is no `NVIDIA L40S`; an empty one is any but those of MPS and MIG. A
    part of an H100 is called `MIG`, `MIG 1g.10gb` or `1g.10gb`, and not `H100`.
    """
    called = list(names)
    if is_mps(model) or MPS in called:
        return is_mps(model) and MPS in called
    if not model:
        return MIG not in called
    if MIG not in called:
        return not names_part(model) and _has_words(model, called, before=r"\w")
    if not names_part(model):  # a model, or a label, that stands in the name for the whole GPU
        called = [name[max(name.find(MIG), 0) :] for name in called]
    # of `1c.3g.40gb` the `3g.40gb` is no word
    return _has_words(model, called, before=r"\w.")


def _has_words(words: str, names: Iterable[str], before: str) -> bool:
    """before: what may not stand before them."""
    wanted = re.compile(rf"(?<![{before}]){re.escape(words)}(?!\w)", re.IGNORECASE)
    return any(wanted.search(name) for name in names)


@lru_cache(maxsize=256)
def names_part(model: str) -> bool:
    """Does it have the word MIG, or a profile such as `1g.10gb`? Then it is meant for a part of a GPU alone."""
    return _PART.search(model) is not None


def is_mps(model: str) -> bool:
    """Is a GPU asked for that MPS shares?"""
    return model.upper() == MPS


def goes_alone(quota: Quota, names: Iterable[str]) -> bool:
    """Is nobody else on a GPU of these names beside such a slice?"""
    return quota.exclusive or MIG in names


def has_room(quota: Quota, names: tuple[str, ...], slices: int, memory_free: int, cores_free: float) -> bool:
    """May a slice go onto a GPU of these names, with so many slices on it and so much free? Bytes and percent."""
    is_free = quota.memory <= memory_free and quota.cores <= cores_free
    return is_free and not (slices and goes_alone(quota, names)) and is_called(quota.model, names)


def is_roomy(slices: Sequence[int]) -> bool:
    """Are so many GPUs empty that the next slice may have one for itself? slices: how many are on each."""
    return 4 * sum(count == 0 for count in slices) > len(slices)


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


def parse_model(value: object) -> str:
    """Words of a GPU's name, or a label. Raises QuotaError."""
    if not isinstance(value, str) or len(value) > MODEL_MAX or not value.isprintable():
        raise QuotaError(
            f"model={_shown(value)} is no model of a GPU: give words of its name, such as 'H100', or a label"
        )
    return value.strip()


def parse_exclusive(value: object) -> bool:
    """Raises QuotaError."""
    if not isinstance(value, bool):
        raise QuotaError(f"exclusive={_shown(value)} is neither yes nor no: give true or false")
    return value


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
