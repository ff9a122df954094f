"""Slices that share a GPU at the same time, by MPS, beside slices that take turns: work that fills little of it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from measures import Bench, rates_of
from results import Row
from systems import Mps, Program, Slices

TENANTS, ROUNDS, SECONDS = 4, 3, "4"
BLOCKS = "32"
"""Of a kernel: an eighth of what an H100 runs at once."""
PARTS = ("four",)


def _total(start: Callable[[list[str], int], Program], argv: list[str]) -> list[float]:
    """Kernels a second, by tenant."""
    programs = [start(argv, number).ready() for number in range(TENANTS)]
    for program in programs:
        program.go()
    return [statistics.mean(rates_of(program.answer())[1:]) for program in programs]


def together(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """Four tenants of 25 percent, each with kernels of an eighth of the GPU: all that they get done."""
    os.environ["LOAD_BLOCKS"] = BLOCKS
    argv = [bench.load, "run", bench.steps(1100), SECONDS]
    by_mps = Slices("--NodeApp.mps_gpus=['0']")
    plain = Mps()
    found: dict[str, list[list[float]]] = {"turns": [], "mps": [], "plain": []}
    try:
        for _ in range(ROUNDS):
            for name, slices, more in (("turns", bench.slices, {}), ("mps", by_mps, {"model": "MPS"})):
                with ExitStack() as stack:
                    tenants = [
                        stack.enter_context(slices.tenant(100 / TENANTS, "4G", name=f"t{number}", **more))
                        for number in range(TENANTS)
                    ]
                    found[name].append(_total(lambda run, number, those=tenants: those[number].start(run), argv))
            found["plain"].append(_total(lambda run, _: plain.start(run, 100 / TENANTS, "4G"), argv))
    finally:
        plain.stop()
        by_mps.stop()
        del os.environ["LOAD_BLOCKS"]
    totals = {name: statistics.median(sum(rates) for rates in rounds) for name, rounds in found.items()}
    spread = max(max(rates) / min(rates) for rates in found["mps"])
    return [
        Row(
            "together.small_kernels_over_turns",
            totals["mps"] / totals["turns"],
            "x",
            "higher",
            f"{TENANTS} tenants of 25 %, kernels of {BLOCKS} blocks: {totals['mps']:.0f} a second by MPS, "
            f"{totals['turns']:.0f} in turns; the largest part {spread:.2f} times the smallest; medians of {ROUNDS}",
            mps=totals["plain"] / totals["turns"],
        )
    ]
