"""Kills and changes on a real GPU, under load."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from measures import Bench, rates_of
from results import Row
from support.gpu import nvml_used

GUARD_KILLS = 100
DAEMON_KILLS = 20
PROCESSES = 1000
WORKERS = 12
MIB = 1 << 20


def _kill_guard(bench: Bench) -> float:
    """Seconds until another one answers."""
    node = bench.slices.node
    old = node.kill_guard()
    began = time.monotonic()
    while node.guard_pid() in (0, old):
        time.sleep(0.002)
    return time.monotonic() - began


def _kill_guard_and_daemon(bench: Bench) -> list[Row]:
    with bench.slices.tenant(50, "8G") as tenant:
        program = tenant.start([bench.load, "run", bench.steps(1100), "100"]).ready()
        program.go()
        time.sleep(3)
        back = []
        for _ in range(GUARD_KILLS):
            back.append(_kill_guard(bench))
            time.sleep(0.15)
        for _ in range(DAEMON_KILLS):
            bench.slices.node.kill()
            bench.slices.node.start()
            time.sleep(0.15)
        answer = program.answer()
    rates = rates_of(answer, 1)
    before, after = statistics.median(rates[:4]), statistics.median(rates[-5:-1])
    return [
        Row(
            "fault.guard_killed_back_ms",
            1e3 * statistics.median(back),
            "ms",
            "lower",
            f"until another guard answers, {GUARD_KILLS} kill -9 under load, highest {1e3 * max(back):.0f}",
        ),
        Row(
            "fault.rate_after_kills_percent",
            100 * after / before,
            "%",
            "higher",
            f"a 50 % tenant's rate after {GUARD_KILLS} kill -9 of the guard and {DAEMON_KILLS} of vgpud, of before",
        ),
    ]


def _resize(bench: Bench) -> list[Row]:
    """From the request to the first 50 ms whose rate is the new one's, by kernels of 1.1 ms."""
    with bench.slices.tenant(75, "8G") as tenant:
        program = tenant.start([bench.load, "run", bench.steps(1100), "8"]).ready()
        program.go()
        time.sleep(3.02)
        tenant.resize(cores=25)
        rates = rates_of(program.answer())
    # in the half second of the change: how long the old rate went on
    old, new = statistics.median(rates[1:5]), statistics.median(rates[8:14])
    late = max(0.0, (rates[6] - new) / (old - new)) * 500 - 20 if old > new else 0.0
    return [
        Row("fault.resize_ms", max(0.0, late), "ms", "lower", "from the request until the new share holds, 75 to 25 %")
    ]


def _kill_processes(bench: Bench) -> list[Row]:
    """Processes killed at random points of their lives: a quarter with libcuda, the others with bare driver calls."""
    numbers = random.Random(1)
    lives = [
        ([bench.load, "alloc", "1000000"], 0.7 * numbers.random())
        if i % 4 == 0
        else ([bench.attack, "race-memory", "100"], 0.06 * numbers.random())
        for i in range(PROCESSES)
    ]
    base, differences = nvml_used(), []
    done = threading.Event()
    node = bench.slices.node

    def compare() -> None:
        while not done.wait(0.1):
            before = node.used("killed")
            witness = nvml_used() - base
            after = node.used("killed")
            # what lies between both readings of the ledger is no difference
            differences.append(max(0, min(before, after) - witness, witness - max(before, after)))

    with bench.slices.tenant(100, "40G", name="killed") as tenant:
        witness = threading.Thread(target=compare)
        witness.start()

        def live(life: tuple[list[str], float]) -> None:
            process = tenant.start(life[0]).process
            time.sleep(life[1])
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(live, lives))
        ended = time.monotonic()
        done.set()
        while node.used("killed") and time.monotonic() < ended + 30:
            time.sleep(0.005)
        zero = time.monotonic() - ended
        witness.join()
    return [
        Row("fault.killed_1000_zero_s", zero, "s", "lower", "from the last of 1,000 kill -9 until the ledger is zero"),
        Row(
            "fault.killed_1000_difference_mib",
            statistics.median(differences) / MIB,
            "MiB",
            "lower",
            f"ledger against NVML while they run, {WORKERS} at once; median of {len(differences)}, "
            f"highest {max(differences) / MIB:.0f} (each context holds some 7 MiB that is no allocation)",
        ),
    ]


FAULTS = {"kills": _kill_guard_and_daemon, "resize": _resize, "processes": _kill_processes}


def fault(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """Guard, daemon and tenants' processes killed; a quota changed while a program runs."""
    return [row for part in parts for row in FAULTS[part](bench)]
