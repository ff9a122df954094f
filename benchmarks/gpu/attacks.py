"""Hostile tenants on a real GPU: what they gain, and what their neighbours lose. NVML and the neighbour are asked."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from measures import Bench, rates_of
from results import Row
from support.gpu import Witness

QUOTA, QUOTA_BYTES = "2G", 2 << 30
RACERS, ALLOCATIONS = 16, 10000
RACE_QUOTA, RACE_BYTES = "24G", 24 << 30
SECONDS = 5


def _rewrite(bench: Bench) -> list[Row]:
    rows = []
    for mode, what in {
        "race-memory": "class and size rewritten while a call is judged",
        "race-descriptor": "the descriptor swapped under the call",
        "race-object": "a client's making turned into memory's",
    }.items():
        with bench.slices.tenant(50, QUOTA, name="hostile") as tenant, Witness() as witness:
            racers = [tenant.start([bench.attack, mode, str(SECONDS)]) for _ in range(4)]
            calls = sum(racer.answer()["calls"] for racer in racers)
        rows.append(
            Row(
                f"attack.{mode.replace('-', '_')}.max_bytes",
                float(witness.most),
                "bytes",
                "lower",
                f"{what}: {calls} calls of 4 processes, quota {QUOTA_BYTES}; {witness.samples} samples of NVML",
            )
        )
    return rows


def _race(bench: Bench) -> list[Row]:
    """16 processes, 10,000 allocations each, one quota."""
    with bench.slices.tenant(100, RACE_QUOTA, name="racing") as tenant, Witness() as witness:
        racers = [tenant.start([bench.load, "grab", str(ALLOCATIONS)]).ready() for _ in range(RACERS)]
        for racer in racers:
            racer.go()
        answers = [racer.answer(300) for racer in racers]
    refused = sum(answer["refused"] for answer in answers)
    return [
        Row(
            "attack.race_16_processes.max_bytes",
            float(witness.most),
            "bytes",
            "lower",
            f"{RACERS} processes x {ALLOCATIONS} allocations, {refused} refused, quota {RACE_BYTES}; "
            f"{witness.samples} samples of NVML",
        )
    ]


def _switch(bench: Bench) -> list[Row]:
    """The call that takes a neighbour off the GPU on the stock driver, with numbers that a neighbour can guess."""
    argv = [bench.attack, "switch", str(SECONDS), "c1d00020", "5c00001c"]
    with bench.slices.tenant(50, "8G", name="neighbour") as one, bench.slices.tenant(50, QUOTA, name="hostile") as bad:
        neighbour = one.start([bench.load, "run", bench.steps(1100), str(2 * SECONDS + 2)]).ready()
        neighbour.go()
        time.sleep(SECONDS)
        attackers = [bad.start(argv) for _ in range(2)]
        rates = rates_of(neighbour.answer(), 1)
        for attacker in attackers:
            attacker.answer()
    quiet = statistics.median(rates[1 : 2 * SECONDS - 2])
    attacked = statistics.median(rates[2 * SECONDS + 1 : -2])
    return [
        Row(
            "attack.switch_neighbour.rate_percent",
            100 * attacked / quiet,
            "%",
            "higher",
            "a 50 % neighbour's rate while FIFO_DISABLE_CHANNELS is called without a pause, of before",
        )
    ]


def _flood(bench: Bench) -> list[Row]:
    """A neighbour's allocations beside two processes that call the guard as fast as they can."""
    argv = [bench.load, "alloc", "5000"]
    with bench.slices.tenant(50, "8G", name="neighbour") as one, bench.slices.tenant(50, QUOTA, name="hostile") as bad:
        quiet = statistics.median(one.start(argv).answer()["alloc_free_us"] for _ in range(5))
        floods = [bad.start([bench.attack, "nonsense", str(SECONDS)]) for _ in range(2)]
        time.sleep(0.5)
        flooded = statistics.median(one.start(argv).answer()["alloc_free_us"] for _ in range(5))
        calls = sum(flood.answer()["calls"] for flood in floods)
    return [
        Row(
            "attack.flood.neighbour_alloc_free_us",
            flooded,
            "us",
            "lower",
            f"beside two processes that make {calls} calls of nonsense; {quiet:.1f} us without them",
        )
    ]


ATTACKS = {"memory": _rewrite, "race": _race, "switch": _switch, "flood": _flood}


def attack(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """Races for memory; a neighbour's channels, and its calls under a flood."""
    return [row for part in parts for row in ATTACKS[part](bench)]
