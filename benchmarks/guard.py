"""What the guard costs, on the emulated GPU: the same program with and without it, in turns.

Writes benchmarks/results/cpu.json: what needs no GPU.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from results import Machine, Row, show, write  # noqa: E402
from support.node import Node  # noqa: E402

from jupyter_vgpu.native import native_dir, program  # noqa: E402

ROUNDS = 7

ALLOCATIONS = """
import time
from cuda.bindings import driver
driver.cuInit(0); driver.cuCtxSetCurrent(driver.cuDevicePrimaryCtxRetain(0)[1])
for _ in range(200): driver.cuMemFree(driver.cuMemAlloc(1 << 20)[1])
began = time.perf_counter()
for _ in range(5000): driver.cuMemFree(driver.cuMemAlloc(1 << 20)[1])
print((time.perf_counter() - began) / 5000 * 1e6)
"""


def _plain(code: str, emulated: Path) -> float:
    environment = os.environ | {"LD_LIBRARY_PATH": str(native_dir() / "emulator"), "VGPU_EMULATED_DIR": str(emulated)}
    return float(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout)


def _guarded(node: Node, tenant: dict[str, Any], code: str) -> float:
    out, err = node.spawn(tenant, sys.executable, "-c", code).communicate(timeout=30)
    if not out:
        raise RuntimeError(err)
    return float(out)


def _start_ms(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    return (time.perf_counter() - began) * 1e3


def measure() -> list[Row]:
    """Pairs, in turns, so that a slow moment of the machine falls on both."""
    node = Node("--emulate", "--emulated-memory=4G")
    try:
        tenant = node.tenant("1G", 100)
        launcher = [str(program("vgpu-run")), "--dir", tenant["launch"]["directory"], "--", "true"]
        environment = os.environ | tenant["launch"]["environment"]
        pairs: dict[str, list[tuple[float, float]]] = {"guard.alloc_free_us": [], "guard.start_ms": []}
        with tempfile.TemporaryDirectory() as emulated:
            for _ in range(ROUNDS):
                pairs["guard.alloc_free_us"].append(
                    (_plain(ALLOCATIONS, Path(emulated)), _guarded(node, tenant, ALLOCATIONS))
                )
                plain = _start_ms(["true"], dict(os.environ))
                pairs["guard.start_ms"].append((plain, _start_ms(launcher, environment)))
    finally:
        node.stop()
    details = {
        "guard.alloc_free_us": "cuMemAlloc + cuMemFree of 1 MiB; native: the emulated driver without the guard",
        "guard.start_ms": "start and end of /bin/true through vgpu-run; native: without it",
    }
    return [_row(name, values, details[name]) for name, values in pairs.items()]


def _row(name: str, pairs: list[tuple[float, float]], detail: str) -> Row:
    return Row(
        name,
        statistics.median(guarded for _, guarded in pairs),
        name.rsplit("_", 1)[1],
        "lower",
        f"{detail}; medians of {len(pairs)} pairs",
        native=statistics.median(plain for plain, _ in pairs),
    )


def main() -> None:
    """Measure, write, show."""
    rows = measure()
    kernel = platform.release().split("-")[0]
    write("cpu", Machine(f"emulated GPU, {os.cpu_count()} cores, Linux {kernel}", "emulated"), rows)
    show(rows)


if __name__ == "__main__":
    main()
