"""Whose process is it, of those that the driver says are on a GPU? Decided once for each, over all tenants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..native import layout
from . import processes
from .shim_tier import ShimTier

_GENERATIONS = 64


def attribute(pids: Iterable[int], tiers: Mapping[str, ShimTier], directories: Mapping[str, str]) -> dict[int, str]:
    """Tenant by process; those of nobody are left out.

    tiers: of the tenants in tier `shim`, by tenant. directories: which tenant's a slice's directory is, of all tenants.
    First who is known counts, then what the environment says, the nearest ancestor, and last the container, where only
    one tenant is in it.
    """
    found: dict[int, str] = {}
    containers: dict[str, set[str]] = {}
    for owner, tier in tiers.items():
        for name in tier.containers():
            containers.setdefault(name, set()).add(owner)
    for pid in pids:
        tenant: str | None = (
            _known(pid, tiers)
            or directories.get(processes.variable(pid, layout()["env_dir"]) or "")
            or _by_ancestor(pid, tiers)
        )
        if tenant is None:
            there = containers.get(processes.container(pid) or "", set())
            tenant = next(iter(there)) if len(there) == 1 else None
        if tenant is not None and tenant in tiers:
            found[pid] = tenant
    return found


def _known(pid: int, tiers: Mapping[str, ShimTier]) -> str | None:
    return next((tenant for tenant, tier in tiers.items() if tier.has_member(pid)), None)


def _by_ancestor(pid: int, tiers: Mapping[str, ShimTier]) -> str | None:
    for _ in range(_GENERATIONS):
        owner = next((tenant for tenant, tier in tiers.items() if tier.has_entered(pid)), None)
        pid = processes.parent(pid)
        if owner or pid <= 1:
            return owner
    return None
