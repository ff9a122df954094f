"""Measure the guard on a real GPU, beside native, MPS and (HAMI_CORE_LIB=…/libvgpu.so) HAMi-core.

python benchmarks/gpu [MEASURE[:PART,...] ...]: memory compute share latency overhead fault attack shim own
together; or all
A part is a workload, split, policy or path, as in compute:36us,graph.
Writes benchmarks/results/<gpu>.json after each measure, so that a run that ends early leaves what it has.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pynvml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks"), str(ROOT)]

from attacks import ATTACKS, attack  # noqa: E402
from faults import FAULTS, fault  # noqa: E402
from measures import COSTS, PATHS, POLICIES, SHARES, WORKLOADS, Bench, compute, latency, memory, overhead, share  # noqa: E402
from results import Machine, Row, show, write  # noqa: E402
from shim_tier import OWN, PARTS, own, shim  # noqa: E402
from support.gpu import build_attack, build_cuda  # noqa: E402
from systems import Slices, native  # noqa: E402
from together import PARTS as TOGETHER  # noqa: E402
from together import together  # noqa: E402

from jupyter_vgpu.client import DaemonError  # noqa: E402

# What a measure is called, how it is taken, and its parts.
MEASURES: dict[str, tuple[Callable[[Bench, Sequence[str]], list[Row]], Sequence[str]]] = {
    "memory": (memory, PATHS),
    "compute": (compute, tuple(WORKLOADS)),
    "share": (share, SHARES),
    "latency": (latency, POLICIES),
    "overhead": (overhead, COSTS),
    "fault": (fault, tuple(FAULTS)),
    "attack": (attack, tuple(ATTACKS)),
    "shim": (shim, PARTS),
    "own": (own, OWN),
    "together": (together, TOGETHER),
}


def _wanted(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """(measure, parts) of each argument, all by default. Raises ValueError for a name that there isn't."""
    wanted = []
    for argument in arguments or MEASURES:
        name, _, parts = argument.partition(":")
        if name not in MEASURES:
            raise ValueError(f"no measure named {name}; there are: {', '.join(MEASURES)}")
        known = MEASURES[name][1]
        asked = parts.split(",") if parts else list(known)
        for part in asked:
            if part not in known:
                raise ValueError(f"{name} has no part {part!r}; there are: {', '.join(known)}")
        wanted.append((name, asked))
    return wanted


def _machine() -> tuple[str, Machine]:
    """The results' file name (h100) and the machine."""
    pynvml.nvmlInit()
    name = str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    short = next((word for word in name.split() if any(c.isdigit() for c in word)), name)
    return short.lower(), Machine(name, str(pynvml.nvmlSystemGetDriverVersion()))


def main() -> int:
    try:
        wanted = _wanted(sys.argv[1:])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    file, machine = _machine()
    with tempfile.TemporaryDirectory() as directory:
        load, fill = (str(build_cuda(f"benchmarks/gpu/{name}.c", Path(directory))) for name in ("load", "fill"))
        attacker = str(build_attack(Path(directory)))
        slices = Slices()
        failed = []
        try:
            whole = native([load, "calibrate"]).answer()
            os.environ["LOAD_BLOCKS"] = str(whole["blocks"])  # the same work wherever it runs
            bench = Bench(load, fill, attacker, slices, whole["steps_per_us"])
            for name, parts in wanted:
                print(f"--- {name}", flush=True)
                try:
                    rows = MEASURES[name][0](bench, parts)
                except (RuntimeError, OSError, DaemonError, AssertionError):  # must not cost the other measures
                    traceback.print_exc()
                    failed.append(name)
                    continue
                write(file, machine, rows)
                show(rows)
        finally:
            slices.stop()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
