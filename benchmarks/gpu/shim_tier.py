"""The shim on a real GPU: in a node where it alone holds, and what of a slice's cost is its own in tier `guard`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from measures import CALLS, COSTS, PATHS, WORKLOADS, Bench, compute, costs, memory
from results import Row
from systems import Slices

PARTS = ("memory", *COSTS, *WORKLOADS)
OWN = (*CALLS, "context_ms", "tiny_ops")
PACED = 99.9  # of a tenant with the whole GPU nothing is paced


def shim(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """Memory by path, cost of calls and of whole programs, and |error| of compute, each as `shim.…`."""
    slices = Slices("--NodeApp.force_shim_tier=True")
    bench = replace(bench, slices=slices)
    rows: list[Row] = []
    try:
        if "memory" in parts:
            rows += memory(bench, PATHS)
        if chosen := [part for part in parts if part in COSTS]:
            with slices.tenant(PACED, "36G") as tenant:
                rows += costs(bench, chosen, tenant)
        rows += compute(bench, [part for part in parts if part in WORKLOADS])
    finally:
        slices.stop()
    return [replace(row, id=f"shim.{row.id.removeprefix('overhead.')}") for row in rows]


def own(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """What the shim costs in tier `guard`: the same program in the same slice with it and without, in pairs."""
    with bench.slices.tenant(100, "36G") as tenant:
        rows = costs(bench, parts, tenant, lambda argv: tenant.start(["env", "-u", "LD_PRELOAD", *argv]))
    return [
        replace(
            row,
            id=f"own.{row.id.removeprefix('overhead.')}",
            detail=f"native: a slice without the shim; {row.detail.replace('natively', 'without')}",
        )
        for row in rows
    ]
