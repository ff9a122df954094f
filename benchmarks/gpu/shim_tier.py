"""Tier `shim` on a real GPU: the same measures as the guard's, in a node where the shim alone holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from measures import COSTS, PATHS, WORKLOADS, Bench, compute, costs, memory
from results import Row
from systems import Slices

PARTS = ("memory", *COSTS, *WORKLOADS)
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
