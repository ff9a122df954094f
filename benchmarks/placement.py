"""Waiting and fragmentation by placement, simulated: 64 GPUs of 80 GiB, against first-fit.

The trace is synthetic and stated below: slices come at random moments, in the mix of a department (most are small),
stay for two hours on average (log-normal, at most a day), and wait in one line: who comes first is placed first.
Writes benchmarks/results/cpu.json.
"""

from __future__ import annotations

import heapq
import platform
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from results import Machine, Row, show, write  # noqa: E402

from jupyter_vgpu.node.placement import NoRoom, Room, Strategy, place  # noqa: E402
from jupyter_vgpu.quotas import Quota  # noqa: E402

GIB = 1 << 30
GPUS, MEMORY = 64, 80 * GIB
# (part of all, GiB, percent)
MIX = ((0.30, 4, 10), (0.25, 8, 25), (0.15, 20, 25), (0.10, 16, 50), (0.08, 40, 25), (0.07, 40, 50), (0.05, 80, 100))
HOURS, SIGMA, LONGEST = 2.0, 1.18, 24.0
LOADS = (0.85, 0.95)
JOBS, SEEDS, WARM_UP = 6000, 5, 1000

Placer = Callable[[Quota, Sequence[Room], Iterable[Quota]], Room]


@dataclass(frozen=True)
class Job:
    """Hours."""

    at: float
    quota: Quota
    stays: float


def first_fit(quota: Quota, rooms: Sequence[Room], held: Iterable[Quota]) -> Room:
    for room in rooms:
        if room.fits(quota):
            return room
    raise NoRoom


def by(strategy: Strategy) -> Placer:
    return lambda quota, rooms, held: place(quota, rooms, strategy=strategy, held=held)


def jobs(seed: int, load: float) -> list[Job]:
    """load: of the scarcer of memory and compute, on average."""
    chance = random.Random(seed)
    each = sum(part * max(gib * GIB / MEMORY, percent / 100) for part, gib, percent in MIX)
    a_hour = load * GPUS / (each * HOURS)
    at, made = 0.0, []
    for _ in range(JOBS):
        at += chance.expovariate(a_hour)
        _, gib, percent = chance.choices(MIX, [part for part, _, _ in MIX])[0]
        made.append(Job(at, Quota(gib * GIB, percent), min(LONGEST, chance.lognormvariate(0, SIGMA))))
    return made


def simulate(placer: Placer, trace: list[Job]) -> tuple[float, float]:
    """(useless part of the GPUs, hours waited), means after the warm-up."""
    rooms = [Room(f"GPU-{i}", i, MEMORY, 0, 100.0, 0.0) for i in range(GPUS)]
    line: deque[Job] = deque()
    ends: list[tuple[float, int, int, Quota]] = []
    held: dict[int, Quota] = {}
    waited, lost, number, arriving = [], [], 0, 0

    def change(index: int, quota: Quota, sign: int) -> None:
        room = rooms[index]
        memory, cores = room.memory_reserved + sign * quota.memory, room.cores_reserved + sign * quota.cores
        rooms[index] = replace(room, memory_reserved=memory, cores_reserved=cores, slices=room.slices + sign)

    while arriving < len(trace) or line:
        if ends and (arriving == len(trace) or ends[0][0] <= trace[arriving].at):
            now, which, index, quota = heapq.heappop(ends)
            change(index, quota, -1)
            del held[which]
        else:
            now = trace[arriving].at
            line.append(trace[arriving])
            arriving += 1
        while line:
            job = line[0]
            try:
                room = placer(job.quota, rooms, held.values())
            except NoRoom:
                break
            line.popleft()
            number += 1
            change(room.index, job.quota, +1)
            held[number] = job.quota
            heapq.heappush(ends, (now + job.stays, number, room.index, job.quota))
            if number > WARM_UP:
                waited.append(now - job.at)
        if number > WARM_UP and number % 20 == 0:
            lost.append(sum(_useless(room) for room in rooms) / GPUS)
    return statistics.mean(lost), statistics.mean(waited)


def _useless(room: Room) -> float:
    """The part of a GPU that is free and that a slice of the mix, drawn at random, can't use."""
    free = (room.memory_free / room.memory_total + room.cores_free / room.cores_total) / 2
    return free * sum(part for part, gib, percent in MIX if not room.fits(Quota(gib * GIB, percent)))


def main() -> int:
    placers: dict[str, Placer] = {"first_fit": first_fit} | {str(each): by(each) for each in Strategy}
    rows = []
    for load in LOADS:
        found = {
            name: [simulate(placer, jobs(seed, load)) for seed in range(SEEDS)] for name, placer in placers.items()
        }
        lost, waited = (
            {name: statistics.mean(run[which] for run in runs) for name, runs in found.items()} for which in (0, 1)
        )
        percent = round(100 * load)
        for name in (str(each) for each in Strategy):
            told = f"{GPUS} GPUs, load {percent} %, {SEEDS} traces of {JOBS} slices; first-fit"
            rows.append(
                Row(
                    f"hub.fragmentation_vs_first_fit.{name}.{percent}",
                    lost[name] / lost["first_fit"],
                    "ratio",
                    "lower",
                    f"{told} leaves {100 * lost['first_fit']:.2f} % useless",
                )
            )
            rows.append(
                Row(
                    f"hub.wait_vs_first_fit.{name}.{percent}",
                    waited[name] / waited["first_fit"] if waited["first_fit"] else 1.0,
                    "ratio",
                    "lower",
                    f"{told} waits {60 * waited['first_fit']:.1f} minutes on average",
                )
            )
    ratios = {row.id.split(".", 2)[2]: row.value for row in rows if ".fragmentation_vs_first_fit." in row.id}
    where = max(ratios, key=lambda name: ratios[name])
    rows.append(Row("hub.fragmentation_vs_first_fit", ratios[where], "ratio", "lower", f"the worst of them: {where}"))
    write("cpu", Machine(f"simulated, Linux {platform.release()}", "none"), rows)
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
