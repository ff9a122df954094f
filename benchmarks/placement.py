"""Waiting and fragmentation by placement, simulated: 64 GPUs of 80 GiB, against first-fit.

The trace is synthetic and stated below: slices come at random moments, in the mix of a department (most are small),
stay for two hours on average (log-normal, at most a day). Twice: all GPUs in one node, whose placement alone is looked
at, with one line where who comes first is placed first; and eight nodes of eight GPUs with all that a hub does: the
choice of the node, the node's placement, and the queue with its groups. Writes benchmarks/results/cpu.json.
"""

from __future__ import annotations

import heapq
import platform
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "spawner")]

from jupyter_vgpu_spawner.nodes import Packing, in_turn  # noqa: E402
from jupyter_vgpu_spawner.turns import Space, Waiting, in_order, loads, seat  # noqa: E402
from results import Machine, Row, show, write  # noqa: E402

from jupyter_vgpu.node.placement import NoRoom, Room, Strategy, place  # noqa: E402
from jupyter_vgpu.quotas import Quota  # noqa: E402

GIB = 1 << 30
GPUS, MEMORY = 64, 80 * GIB
NODES, GROUPS, USERS = 8, 10, 400
# (part of all, GiB, percent)
MIX = ((0.30, 4, 10), (0.25, 8, 25), (0.15, 20, 25), (0.10, 16, 50), (0.08, 40, 25), (0.07, 40, 50), (0.05, 80, 100))
HOURS, SIGMA, LONGEST = 2.0, 1.18, 24.0
HOUR_S = 3600.0
LOADS = (0.85, 0.95)
JOBS, SEEDS, WARM_UP = 6000, 5, 1000

Placer = Callable[[Quota, Sequence[Room], Iterable[Quota]], Room]


@dataclass(frozen=True)
class Job:
    """Hours."""

    number: int
    at: float
    quota: Quota
    stays: float

    @property
    def user(self) -> str:
        return f"user{self.number * 7919 % USERS}"

    @property
    def group(self) -> str:
        return f"group{self.number * 7919 % USERS % GROUPS}"


Held: TypeAlias = dict[Job, int]
"""Jobs that have their slice, and the index of their GPU."""


class System(Protocol):
    """Who is placed next, and where."""

    def next(self, line: list[Job], rooms: list[Room], held: Held, now: float) -> tuple[Job, Room] | None:
        """line: who waits, as they came. None: nobody is, until another comes or ends."""


def first_fit(quota: Quota, rooms: Sequence[Room], held: Iterable[Quota]) -> Room:
    for room in rooms:
        if room.fits(quota):
            return room
    raise NoRoom


def by(strategy: Strategy) -> Placer:
    return lambda quota, rooms, held: place(quota, rooms, strategy=strategy, held=held)


@dataclass(frozen=True)
class OneLine:
    """Who comes first is placed first; others wait behind."""

    placer: Placer

    def next(self, line: list[Job], rooms: list[Room], held: Held, now: float) -> tuple[Job, Room] | None:
        try:
            return (line[0], self.placer(line[0].quota, rooms, [job.quota for job in held])) if line else None
        except NoRoom:
            return None


@dataclass(frozen=True, slots=True)
class FirstFitSpace(Space):
    """None is better than another, so the first is taken."""

    def leaves(self, quota: Quota) -> float:
        return 0.0


@dataclass(frozen=True)
class Hub:
    """As the spawner and the service do it, but for the seconds that they take. strategy None: first-fit instead of
    each choice of a GPU."""

    strategy: Strategy | None

    def next(self, line: list[Job], rooms: list[Room], held: Held, now: float) -> tuple[Job, Room] | None:
        if not line:
            return None
        if len(line) == 1 and line[0].at == now:  # it comes, and nobody is ahead
            return self._place(line[0], rooms, held)
        kind = Space if self.strategy else FirstFitSpace
        spaces = [kind.from_json(_as_json(room)) for room in rooms]
        groups = {job.user: [job.group] for job in (*line, *held)}
        weights = loads(((job.user, job.quota) for job in held), groups, {}, spaces)
        waiting = {Waiting(job.user, str(job.number), job.quota, HOUR_S * job.at): job for job in line}
        seated, _ = seat(in_order(waiting, weights, HOUR_S * now), spaces)
        return (waiting[seated[0][0]], rooms[seated[0][1]]) if seated else None

    def _place(self, job: Job, rooms: list[Room], held: Held) -> tuple[Job, Room] | None:
        if self.strategy is None:
            return next(((job, room) for room in rooms if room.fits(job.quota)), None)
        names = in_turn(job.quota, map(_as_json, rooms), map(str, range(NODES)), Packing(self.strategy))
        if not names:
            return None
        here = [room for room in rooms if _node(room.index) == names[0]]
        there = [other.quota for other, index in held.items() if _node(index) == names[0]]
        return job, place(job.quota, here, strategy=self.strategy, held=there)


def _node(index: int) -> str:
    return str(index * NODES // GPUS)


def _as_json(room: Room) -> dict[str, Any]:
    """As a node tells of it."""
    return {
        "uuid": room.uuid,
        "node": _node(room.index),
        "name": "",
        "labels": [],
        "slices": room.slices,
        "taken": room.taken,
        "closed": None,
        "memory": {"total": room.memory_total, "reserved": room.memory_reserved},
        "cores": {"total": room.cores_total, "reserved": room.cores_reserved},
    }


def jobs(seed: int, load: float) -> list[Job]:
    """load: of the scarcer of memory and compute, on average."""
    chance = random.Random(seed)
    each = sum(part * max(gib * GIB / MEMORY, percent / 100) for part, gib, percent in MIX)
    a_hour = load * GPUS / (each * HOURS)
    at, made = 0.0, []
    for number in range(JOBS):
        at += chance.expovariate(a_hour)
        _, gib, percent = chance.choices(MIX, [part for part, _, _ in MIX])[0]
        stays = min(LONGEST, chance.lognormvariate(0, SIGMA))
        made.append(Job(number, at, Quota(gib * GIB, percent), stays))
    return made


@dataclass(frozen=True)
class Found:
    """Means after the warm-up: the useless part of the GPUs, hours waited; of those who want a whole GPU."""

    lost: float
    waited: float
    waited_whole: float


def simulate(system: System, trace: list[Job]) -> Found:
    rooms = [Room(f"GPU-{i}", i, MEMORY, 0, 100.0, 0.0) for i in range(GPUS)]
    line: list[Job] = []
    ends: list[tuple[float, int, Job]] = []
    held: dict[Job, int] = {}
    waited, whole, lost, arriving = [], [], [], 0

    def change(index: int, quota: Quota, sign: int) -> None:
        room = rooms[index]
        memory, cores = room.memory_reserved + sign * quota.memory, room.cores_reserved + sign * quota.cores
        rooms[index] = replace(room, memory_reserved=memory, cores_reserved=cores, slices=room.slices + sign)

    while arriving < len(trace) or line:
        if ends and (arriving == len(trace) or ends[0][0] <= trace[arriving].at):
            now, _, job = heapq.heappop(ends)
            change(held.pop(job), job.quota, -1)
        else:
            now = trace[arriving].at
            line.append(trace[arriving])
            arriving += 1
        while found := system.next(line, rooms, held, now):
            job, room = found
            line.remove(job)
            change(room.index, job.quota, +1)
            held[job] = room.index
            heapq.heappush(ends, (now + job.stays, job.number, job))
            if job.number > WARM_UP:
                waited.append(now - job.at)
                if job.quota.cores == 100:
                    whole.append(now - job.at)
        if WARM_UP < arriving < len(trace) and arriving % 20 == 0:
            lost.append(sum(_useless(room) for room in rooms) / GPUS)
    return Found(statistics.mean(lost), statistics.mean(waited), statistics.mean(whole))


def _useless(room: Room) -> float:
    """The part of a GPU that is free and that a slice of the mix, drawn at random, can't use."""
    free = (room.memory_free / room.memory_total + room.cores_free / room.cores_total) / 2
    return free * sum(part for part, gib, percent in MIX if not room.fits(Quota(gib * GIB, percent)))


def measure(system: System, load: float) -> Found:
    runs = [simulate(system, jobs(seed, load)) for seed in range(SEEDS)]
    return Found(*(statistics.mean(values) for values in zip(*map(astuple, runs), strict=True)))


def compare(name: str, percent: int, ours: Found, first: Found, told: str) -> list[Row]:
    """Beside first-fit in the same place. told: which place that is."""

    def row(what: str, mine: float, theirs: float, words: str) -> Row:
        return Row(f"hub.{what}_vs_first_fit.{name}.{percent}", mine / theirs, "ratio", "lower", f"{told}; {words}")

    waits, wholes = 60 * first.waited, 60 * first.waited_whole
    return [
        row("fragmentation", ours.lost, first.lost, f"first-fit leaves {100 * first.lost:.2f} % useless"),
        row("wait", ours.waited, first.waited, f"with first-fit {waits:.1f} minutes on average"),
        row("whole_gpu_wait", ours.waited_whole, first.waited_whole, f"with first-fit {wholes:.1f} minutes on average"),
    ]


def rows_of(load: float) -> list[Row]:
    percent = round(100 * load)
    trace = f"{GPUS} GPUs, load {percent} %, {SEEDS} traces of {JOBS} slices"
    line, queue = measure(OneLine(first_fit), load), measure(Hub(None), load)
    rows = []
    for each in Strategy:
        ours = measure(OneLine(by(each)), load)
        rows += compare(str(each), percent, ours, line, f"{trace}, in one line")
        ours = measure(Hub(each), load)
        rows += compare(f"hub_{each}", percent, ours, queue, f"{trace}, {NODES} nodes with the hub's queue")
    told = f"first-fit, {trace}; for a whole GPU {queue.waited_whole / line.waited_whole:.2f}"
    rows.append(Row(f"hub.queue_wait_vs_one_line.{percent}", queue.waited / line.waited, "ratio", "lower", told))
    return rows


def main() -> int:
    rows = [row for load in LOADS for row in rows_of(load)]
    ratios = {row.id.split(".", 2)[2]: row.value for row in rows if ".fragmentation_vs_first_fit." in row.id}
    where = max(ratios, key=lambda name: ratios[name])
    rows.append(Row("hub.fragmentation_vs_first_fit", ratios[where], "ratio", "lower", f"the worst of them: {where}"))
    write("cpu", Machine(f"simulated, Linux {platform.release()}", "none"), rows)
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
