"""Tier `shim` on a real GPU: the same measures as the guard's, in a node where the shim alone holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from measures import CALLS, PATHS, TRAINING, WORKLOADS, Bench, compute, memory, pairs, programs
from results import Row
from systems import Slices

PARTS = ("memory", "calls", *TRAINING, *WORKLOADS)
PACED = 99.9  # of a tenant with the whole GPU nothing is paced


def shim(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """Memory by path, cost of calls and of whole programs, and |error| of compute, each as `shim.…`."""
    slices = Slices("--NodeApp.force_shim_tier=True")
    bench = replace(bench, slices=slices)
    rows: list[Row] = []
    try:
        if "memory" in parts:
            rows += memory(bench, PATHS)
        if "calls" in parts:
            with slices.tenant(PACED) as tenant:
                rows += [pairs(name, [bench.load, *CALLS[name]], tenant) for name in CALLS]
        if training := [part for part in parts if part in TRAINING]:
            with slices.tenant(PACED, "36G") as tenant:
                rows += programs(training, tenant)
        rows += compute(bench, [part for part in parts if part in WORKLOADS])
    finally:
        slices.stop()
    return [replace(row, id=f"shim.{row.id.removeprefix('overhead.')}") for row in rows]
