"""Measure the guard on a real GPU, beside native, MPS and (HAMI_CORE_LIB=…/libvgpu.so) HAMi-core.

python benchmarks/gpu [MEASURE[:PART,...] ...]: memory compute share latency overhead fault attack; all by default.
A part is a workload, split, policy or path, as in compute:36us,graph.
Writes benchmarks/results/<gpu>.json after each measure, so that a run that ends early leaves what it has.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pynvml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks"), str(ROOT)]

from attacks import attack  # noqa: E402
from faults import fault  # noqa: E402
from measures import Bench, compute, latency, memory, overhead, share  # noqa: E402
from results import Machine, Row, show, write  # noqa: E402
from support.gpu import build_attack, build_cuda  # noqa: E402
from systems import Slices, native  # noqa: E402

from jupyter_vgpu.client import DaemonError  # noqa: E402

MEASURES: dict[str, Callable[[Bench, list[str]], list[Row]]] = {
    "memory": memory,
    "compute": compute,
    "share": share,
    "latency": latency,
    "overhead": overhead,
    "fault": fault,
    "attack": attack,
}


def _machine() -> tuple[str, Machine]:
    """The results' file name (h100) and the machine."""
    pynvml.nvmlInit()
    name = str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    short = next((word for word in name.split() if any(c.isdigit() for c in word)), name)
    return short.lower(), Machine(name, str(pynvml.nvmlSystemGetDriverVersion()))


def main() -> int:
    wanted = [argument.partition(":") for argument in sys.argv[1:] or MEASURES]
    unknown = [name for name, _, _ in wanted if name not in MEASURES]
    if unknown:
        print(f"no measure named {', '.join(unknown)}; there are: {', '.join(MEASURES)}", file=sys.stderr)
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
            for name, _, parts in wanted:
                print(f"--- {name}", flush=True)
                try:
                    rows = MEASURES[name](bench, parts.split(",") if parts else [])
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
