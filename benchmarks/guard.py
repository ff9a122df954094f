"""What the guard costs, on the emulated GPU: the same program with and without it, in turns.

Writes benchmarks/results/cpu.json: what needs no GPU.
"""

from __future__ import annotations

import json
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
IN_A_THREAD = f"import threading\nt = threading.Thread(target=exec, args=({ALLOCATIONS!r}, {{}})); t.start(); t.join()"
_PROGRAMS = {"guard.alloc_free_us": ALLOCATIONS, "guard.thread_alloc_free_us": IN_A_THREAD}


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
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in (*_PROGRAMS, "guard.start_ms")}
        with tempfile.TemporaryDirectory() as emulated:
            for _ in range(ROUNDS):
                for name, code in _PROGRAMS.items():
                    pairs[name].append((_plain(code, Path(emulated)), _guarded(node, tenant, code)))
                plain = _start_ms(["true"], dict(os.environ))
                pairs["guard.start_ms"].append((plain, _start_ms(launcher, environment)))
    finally:
        node.stop()
    details = {
        "guard.alloc_free_us": "cuMemAlloc + cuMemFree of 1 MiB; native: the emulated driver without the guard",
        "guard.thread_alloc_free_us": "cuMemAlloc + cuMemFree of 1 MiB by another thread than the first; as above",
        "guard.start_ms": "start and end of /bin/true through vgpu-run; native: without it",
    }
    return [_row(name, values, details[name]) for name, values in pairs.items()]


def start(processes: int = 300) -> list[Row]:
    """A program's first steps with the shim and without the shim, and many programs at once."""
    node = Node("--emulate", "--emulated-memory=64G")
    try:
        with tempfile.TemporaryDirectory() as directory:
            program = str(Path(directory) / "start")
            subprocess.run(["cc", "-O2", "-o", program, str(ROOT / "benchmarks" / "start.c"), "-ldl"], check=True)
            tenant = node.tenant("60G", 100)

            def once(*prefix: str) -> float:
                out, err = node.spawn(tenant, *prefix, program, stdin=subprocess.DEVNULL).communicate(timeout=60)
                if not out:
                    raise RuntimeError(err)
                return float(out)

            pairs = [(once("env", "LD_PRELOAD="), once("env")) for _ in range(3 * ROUNDS)]
            began = time.monotonic()
            running = [node.spawn(tenant, program, stdin=subprocess.DEVNULL) for _ in range(processes)]
            spawned = time.monotonic() - began
            times = sorted(float(process.communicate(timeout=120)[0]) for process in running)
            whole = time.monotonic() - began
    finally:
        node.stop()
    return [
        _row(
            "shim.first_steps_ms",
            pairs,
            "500 look-ups, cuInit, a context, cuMemGetInfo; native: the guard, no shim",
        ),
        Row(
            "shim.storm_p99_ms",
            times[int(len(times) * 0.99)],
            "ms",
            "lower",
            f"the same in each of {processes} processes of one tenant, started within {spawned:.1f} s, "
            f"all done after {whole:.1f} s; median {statistics.median(times):.1f}; {os.cpu_count()} cores for all",
        ),
    ]


def launch() -> list[Row]:
    """What the shim does at each launch, in both tiers, with a driver that does nothing."""
    forced = Node("--emulate", "--emulated-memory=2G", "--NodeApp.force_shim_tier=True")
    guarded = Node("--emulate", "--emulated-memory=2G")
    try:
        with tempfile.TemporaryDirectory() as directory:
            source, program = str(ROOT / "benchmarks" / "instant_driver.c"), f"{directory}/launch"
            library = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", f"{directory}/libcuda.so.1"]
            subprocess.run(["cc", "-O2", *library, source], check=True)
            subprocess.run(["cc", "-O2", "-DLOOP", "-o", program, source, "-ldl"], check=True)
            command = f"LD_LIBRARY_PATH={directory} exec {program}"
            tenants = {"guard": (guarded, guarded.tenant("512M", 50)), "shim": (forced, forced.tenant("512M", 50))}
            times: dict[str, list[tuple[float, float]]] = {tier: [] for tier in tenants}
            for _ in range(ROUNDS):
                for tier, (node, tenant) in tenants.items():
                    plain = subprocess.run(["sh", "-c", command], check=True, capture_output=True).stdout
                    out = node.spawn(tenant, "sh", "-c", command).communicate(timeout=60)[0]
                    times[tier].append((float(plain), float(out)))
    finally:
        forced.stop()
        guarded.stop()
    detail = "one launch by a driver that does nothing, best of 20 rounds of 500"
    return [
        _row("shim.guard_tier_launch_ns", times["guard"], f"{detail}; tier guard"),
        _row("shim.shim_tier_launch_ns", times["shim"], f"{detail}; tier shim, a slice of 50 %"),
    ]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _build_client(target: Path) -> str:
    program = target / "small_client"
    sources = [str(ROOT / "benchmarks" / "small_client.c"), "-I", str(ROOT / "shim" / "abi")]
    subprocess.run(["cc", "-O2", "-static", "-o", str(program), *sources], check=True)
    return str(program)


def scale(tenants: int = 200, processes: int = 1000, seconds: float = 20) -> list[Row]:
    """Many tenants, each process allocating and freeing twice a second."""
    node = Node("--emulate", "--emulated-memory=64G", "--NodeApp.core_overcommit=64")
    try:
        with tempfile.TemporaryDirectory() as directory:
            client = _build_client(Path(directory))
            made = [node.tenant("256M", 10, f"t{i}") for i in range(tenants)]
            idle_mib = _resident_mib(node.guard_pid())
            running = [
                node.spawn(made[i % tenants], client, str(seconds), "500", stdin=subprocess.DEVNULL)
                for i in range(processes)
            ]
            guard = node.guard_pid()
            before, began = _cpu_seconds(guard), time.monotonic()
            time.sleep(seconds / 4)
            cpu = 100 * (_cpu_seconds(guard) - before) / (time.monotonic() - began)
            resident = _resident_mib(guard)
            answers = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    finally:
        node.stop()
    detail = f"{tenants} tenants, {processes} processes, 2 allocations a second each; {os.cpu_count()} cores for all"
    medians, worst = (sorted(answer[key] for answer in answers) for key in ("median_us", "worst_us"))
    return [
        Row("guard.scale_alloc_free_us", medians[len(medians) // 2], "us", "lower", f"median; {detail}"),
        Row("guard.scale_alloc_free_worst_us", worst[int(len(worst) * 0.99)], "us", "lower", f"p99 of worst; {detail}"),
        Row("guard.scale_cpu_percent", cpu, "% of a core", "lower", detail),
        Row("guard.scale_rss_mib", resident, "MiB", "lower", f"{idle_mib:.0f} MiB before the processes; {detail}"),
    ]


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
    rows = measure() + start() + launch() + scale()
    kernel = platform.release().split("-")[0]
    write("cpu", Machine(f"emulated GPU, {os.cpu_count()} cores, Linux {kernel}", "emulated"), rows)
    show(rows)


if __name__ == "__main__":
    main()
