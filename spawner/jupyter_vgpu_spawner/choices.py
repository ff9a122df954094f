"""What a user may choose on the spawn page, and what comes of the choice. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jupyter_vgpu.quotas import FIELDS, MIG, Policy, Quota, QuotaError, format_bytes, format_percent, is_mps

from .turns import Line, Space, is_possible

NO_GPU = "none"
FIELD = "gpu_slice"
"""Name of the form field, and of the key in `user_options`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of the spawn page. why_not is empty when it can be had now. can_wait: it may be chosen all the same."""

    key: str
    title: str
    why_not: str = ""
    can_wait: bool = False


def slice_key(quota: Quota) -> str:
    """A stable name for a slice, such as `4GiB-25` or `40GiB-100-H100-exclusive`, for forms and the REST API."""
    parts = [format_bytes(quota.memory).replace(" ", ""), f"{quota.cores:g}"]
    if quota.model:
        parts.append(re.sub(r"[^\w.]+", "_", quota.model))
    return "-".join(parts + (["exclusive"] if quota.exclusive else []))


def all_slices(slices: Sequence[Mapping[str, Any]], policy: Policy) -> list[Quota]:
    """The slices of the config. Raises QuotaError when it holds something that is no slice, or two of one name."""
    found = [
        Quota.parse(**entry, policy=policy)
        if {"memory", "cores"} <= set(entry) <= set(FIELDS) - {"policy"}
        else _malformed(entry)
        for entry in slices
    ]
    keys = [slice_key(quota) for quota in found]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise QuotaError(f"gpu_slices has two that are called {twice[0]!r}: leave one out, or change it a little")
    return found


def allowed_slices(
    slices: Sequence[Mapping[str, Any]], quota: Quota, keys: Collection[str] | None = None
) -> list[Quota]:
    """The slices that a user may choose: those of the config that fit into the quota, else the quota itself.

    But not that where all slices of the config ask for a model or to be alone: it would be on any GPU. One that is
    exclusive takes all of a GPU's compute, so it is for who may have that.

    keys: only these, where they are given; a slice under MPS is offered to nobody else, for it is for who is trusted.
    Raises QuotaError when the config holds something that is no slice.
    """
    every = all_slices(slices, quota.policy)
    fitting = [each for each in every if each.memory <= quota.memory and each.cores_kept <= quota.cores]
    if keys is None:
        fitting = [each for each in fitting if not is_mps(each.model)]
    anywhere = not every or any(not each.model and not each.exclusive for each in every)
    offered = fitting or ([quota] if anywhere else [])
    return offered if keys is None else [each for each in offered if slice_key(each) in keys]


def beyond(slices: Sequence[Mapping[str, Any]], quota: Quota, offered: Collection[Quota]) -> list[Choice]:
    """The config's other slices, each with the reason why the user may not have it.

    Of those under MPS nothing is said to whom they are not offered. Raises QuotaError.
    """
    others = [each for each in all_slices(slices, quota.policy) if each not in offered and not is_mps(each.model)]
    return [Choice(slice_key(each), describe(each), _why_beyond(each, quota)) for each in others]


def _why_beyond(wanted: Quota, quota: Quota) -> str:
    if wanted.memory > quota.memory:
        return f"more memory than you may have ({format_bytes(quota.memory)})"
    if wanted.cores_kept > quota.cores:
        return f"more compute than you may have ({format_percent(quota.cores)})"
    return "not among the slices that you may choose: ask this hub's admins"


def why_none_fits(quota: Quota) -> str:
    """For who may have so much, and none of the slices."""
    return f"none of this hub's GPU slices is within what you may have ({describe(quota)}): ask its admins for more"


def _malformed(entry: Mapping[str, Any]) -> Quota:
    raise QuotaError(
        f"gpu_slices has {dict(entry)!r}: each slice is a dict with 'memory' and 'cores', "
        "and perhaps 'model' and 'exclusive'"
    )


def choices(
    slices: Sequence[Quota], gpus: Sequence[Mapping[str, Any]], line: Line | None = None, away: bool = False
) -> list[Choice]:
    """The lines of the form. gpus: as vgpud describes them. line: who waits; None where there is no queue.

    away: a node does not answer, and may have what lacks.
    """

    def choice(quota: Quota) -> Choice:
        reason = why_not(quota, gpus, away)
        if line and not reason and line.must_wait(quota):
            reason = "others wait for a GPU before you"
        can_wait = line is not None and bool(reason) and (away or is_possible(quota, line.spaces))
        return Choice(slice_key(quota), describe(quota), reason, can_wait)

    return [choice(quota) for quota in slices]


def name_of(gpu: Mapping[str, Any]) -> str:
    """`NVIDIA H100 80GB HBM3 (teaching)`: its model, and its labels; of a part (MIG) the name says so."""
    labels = [label for label in gpu["labels"] if label != MIG]
    return f"{gpu['name']} ({', '.join(labels)})" if labels else str(gpu["name"])


def capacity(gpus: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each model of GPU: how many there are, and the most that one of them has free."""
    models: dict[str, list[Mapping[str, Any]]] = {}
    for gpu in gpus:
        models.setdefault(name_of(gpu), []).append(gpu)
    lines = []
    for name, here in models.items():
        lines.append(f"{name}: {_free(here)}" if len(here) == 1 else f"{len(here)} × {name}: {_free(here)}")
    return lines


def _free(gpus: Sequence[Mapping[str, Any]]) -> str:
    frees = [(int(gpu["memory"]["free"]), float(gpu["cores"]["free"])) for gpu in gpus]
    memory, cores = max(frees, key=lambda free: (all(free), *free))
    if not (memory and cores):
        return "gives no new slices now" if all(gpu["closed"] for gpu in gpus) else "in use by others"
    free = f"{format_bytes(memory)} and {format_percent(cores)} of compute free"
    return free if len(gpus) == 1 else f"up to {free} on one"


def describe(quota: Quota) -> str:
    """`4 GiB of GPU memory, 25 % of its compute`."""
    burst = ", and more while the GPU is idle" if quota.policy is Policy.BURST else ""
    model = f", on {quota.model}" if quota.model else ""
    if is_mps(quota.model):
        model = ", at the same time as others (MPS)"
    alone = ", with nobody else on it" if quota.exclusive else ""
    shares = f"{format_bytes(quota.memory)} of GPU memory, {format_percent(quota.cores)} of its compute"
    return shares + burst + model + alone


def why_not(quota: Quota, gpus: Sequence[Mapping[str, Any]], away: bool = False) -> str:
    """Empty when some GPU has room for the slice now, else the reason in words. away: a node does not answer."""
    spaces = [(Space.from_json(gpu), gpu) for gpu in gpus]
    if any(space.fits(quota) for space, _ in spaces):
        return ""
    if away and not any(space.could_fit(quota) for space, _ in spaces):
        return "a machine with GPUs does not answer now"
    if gpus and not any(space.is_meant(quota) for space, _ in spaces):
        everywhere = "all GPUs here are for other slices (MIG, MPS)"
        return f"no GPU here is called {quota.model!r}" if quota.model else everywhere
    fitting = [(space, gpu) for space, gpu in spaces if space.could_fit(quota)]
    large = [gpu for _, gpu in fitting]
    given = [gpu for gpu in large or gpus if not gpu["closed"]]
    best = max(given or large or gpus, key=lambda gpu: int(gpu["memory"]["free"]), default=None)
    if best is None:
        return "there is no GPU here"
    if best["closed"]:
        return f"no new ones now: {best['closed']}"
    if fitting and all(space.is_for_one(quota) for space, _ in fitting):
        return "each GPU that is large enough is in use by others"
    memory, cores = best["memory"]["free"], best["cores"]["free"]
    if not (memory and cores):
        return "in use by others"
    return f"in use by others: {format_bytes(memory)} and {format_percent(cores)} of compute are free"


def why_closed(quota: Quota, gpus: Sequence[Mapping[str, Any]]) -> str:
    """What is said where none of the GPUs that could hold the slice gives new ones now; else empty."""
    large = [gpu for gpu in gpus if Space.from_json(gpu).could_fit(quota)]
    return "" if not large or any(not gpu["closed"] for gpu in large) else str(large[0]["closed"])


def pick(key: object, slices: Sequence[Quota]) -> Quota | None:
    """The slice that a key names; None: no GPU. Raises QuotaError for what is not allowed."""
    if key == NO_GPU:
        return None
    for quota in slices:
        if key == slice_key(quota):
            return quota
    allowed = ", ".join([*(slice_key(quota) for quota in slices), NO_GPU])
    shown = repr(key) if len(repr(key)) <= 40 else repr(key)[:37] + "..."
    raise QuotaError(f"GPU slice {shown} is not one of yours: choose from {allowed}")


def why_too_many(have: Sequence[str], wait: Sequence[str], most: int) -> str:
    """Why a server gets no slice beside a user's others; empty: it may. have, wait: names of those with one, and of
    those in the queue for one."""
    if len(have) + len(wait) < most:
        return ""

    def names(servers: Sequence[str]) -> str:
        return ", ".join(repr(name) if name else "the default one" for name in servers)

    some = f"you may have {most} server{'s' if most > 1 else ''} with a GPU at once"
    if len(have) >= most or not wait:
        return f"{some}, and have {names(have)}: stop one first"
    also = f"have {names(have)} and " if have else ""
    return f"{some}, and {also}wait for one with {names(wait)}: leave the queue with that first"
