"""Memory, shares, latency and cost on a real GPU. Compute is counted in kernels of known work."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import Row
from support.gpu import nvml_used
from systems import HamiCore, Mps, Program, Slices, Tenant, native

REPEATS = 5
PROCESSES, TURNS = 8, 24  # of what is compared with itself natively
Start = Callable[[list[str], float], Program]
Plain = Callable[[list[str]], Program]
Pair = tuple[float, float]  # natively, in a slice


@dataclass
class Bench:
    """Programs, the node, and how many steps of work a microsecond of the whole GPU is."""

    load: str
    fill: str
    attack: str
    slices: Slices
    steps_per_us: float

    def steps(self, microseconds: float) -> str:
        return str(max(1, round(microseconds * self.steps_per_us)))


def rates_of(answer: dict[str, Any], skip: int = 0) -> list[float]:
    """Kernels per second of each half second."""
    return [kernels / seconds for seconds, kernels in answer["windows"]][skip:]


def _chunks(rates: list[float], size: int) -> list[float]:
    whole = [rates[i : i + size] for i in range(0, len(rates), size)]
    return [statistics.mean(chunk) for chunk in whole if len(chunk) == size]


# --- compute ---

WORKLOADS = {
    "36us": (36.0, "plain", 1),
    "1.1ms": (1100.0, "plain", 1),
    "34ms": (34000.0, "plain", 1),
    "graph": (1100.0, "graph", 1),
    "cooperative": (1100.0, "cooperative", 1),
    "4procs": (1100.0, "plain", 4),
}
PERCENTS = (10, 25, 50, 75)


def _run(start: Callable[[list[str]], Program], bench: Bench, workload: str, seconds: float) -> list[Program]:
    microseconds, mode, processes = WORKLOADS[workload]
    argv = [bench.load, "run", bench.steps(microseconds), str(seconds), mode]
    return [start(argv) for _ in range(processes)]


def _sum_of_rates(programs: list[Program], during: Callable[[], None]) -> list[float]:
    for program in programs:
        program.ready()
    for program in programs:
        program.go()
    during()
    answers = [rates_of(program.answer()) for program in programs]
    return [sum(rates) for rates in zip(*answers, strict=False)]


def _limited(bench: Bench, workload: str, chunk: int) -> tuple[float, dict[int, list[float]]]:
    """Solo rate, and rates by percent: one run whose quota is changed while it runs, so both are of one process."""
    rest, part = 4, REPEATS * chunk  # in half seconds
    with bench.slices.tenant(100) as tenant:

        def change() -> None:
            began = time.monotonic()
            for turn, percent in enumerate(PERCENTS):
                at = 1 + turn * (rest + 1 + part + 1) / 2
                for when, cores in ((at + rest / 2, percent), (at + (rest + 1 + part) / 2 + 0.25, 100)):
                    time.sleep(max(0.0, began + when - time.monotonic()))
                    tenant.resize(cores=cores)

        seconds = 1.5 + len(PERCENTS) * (rest + part + 2) / 2
        rates = _sum_of_rates(_run(tenant.start, bench, workload, seconds), change)
    solo: list[float] = []
    limited = {}
    for turn, percent in enumerate(PERCENTS):
        at = 2 + turn * (rest + part + 2)
        solo += rates[at + 1 : at + rest - 1]
        limited[percent] = rates[at + rest + 1 : at + rest + 1 + part]
    # of a slow kernel half a second has a few only, and a median of whole numbers is one
    return (statistics.median if statistics.median(solo) > 100 else statistics.mean)(solo), limited


def _once(start: Start, bench: Bench, workload: str, percent: float, solo: float) -> float | None:
    """Share in percent of the solo rate under another system, one run."""
    try:
        rates = _sum_of_rates(_run(lambda argv: start(argv, percent), bench, workload, 4), lambda: None)
    except RuntimeError as error:
        print(f"{workload} at {percent} %: {error}", file=sys.stderr)
        return None
    return 100 * statistics.mean(rates[2:]) / solo if rates[2:] else None


def compute(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """|error| in points of the percent asked, of each workload and percent."""
    rows: list[Row] = []
    for workload in parts:
        chunk = 10 if workload == "34ms" else 4
        solo, limited = _limited(bench, workload, chunk)
        hami = {p: _once(HamiCore.start, bench, workload, p, solo) for p in PERCENTS if HamiCore.available}
        mps_rates: dict[int, float | None] = {}
        if Mps.available and workload in ("36us", "1.1ms"):
            daemon = Mps()
            try:
                mps_rates = {p: _once(daemon.start, bench, workload, p, solo) for p in PERCENTS}
            finally:
                daemon.stop()
        for percent, rates in limited.items():
            shares = [100 * rate / solo for rate in _chunks(rates, chunk)]
            share = statistics.median(shares)
            other = [None if x is None else abs(x - percent) for x in (hami.get(percent), mps_rates.get(percent))]
            rows.append(
                Row(
                    f"compute.{percent}.{workload}.error_points",
                    abs(share - percent),
                    "points",
                    "lower",
                    f"got {share:.2f} % (lowest {min(shares):.2f}, highest {max(shares):.2f}) of {solo:.1f} kernels/s",
                    hami_core=other[0],
                    mps=other[1],
                )
            )
        if workload == "36us":
            worst = max(abs(100 * rate / solo - percent) for percent, rates in limited.items() for rate in rates)
            rows.append(
                Row("compute.window_error_points", worst, "points", "lower", "worst half second, 36 us kernels")
            )
    return rows


# --- several tenants ---

SPLITS = {"30_70": (30, 70), "10_90": (10, 90), "4_equal": (25, 25, 25, 25), "100_50": (100, 50)}
SHARES = (*SPLITS, "burst", "processes")


def _together(programs: list[Program], seconds: float) -> list[list[float]]:
    for program in programs:
        program.ready()
    for program in programs:
        program.go()
    answers = [program.answer(seconds + 60) for program in programs]
    first = min(answer["began"] for answer in answers)
    print("started within", max(answer["began"] for answer in answers) - first)
    return [rates_of(answer, 3) for answer in answers]


def _solo(bench: Bench, argv: list[str]) -> float:
    program = native(argv).ready()
    program.go()
    return statistics.median(rates_of(program.answer(), 1))


def share(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """Several saturating tenants: what each gets, and what all get together, of the solo rate."""
    seconds = 1.5 + REPEATS * 2 + 0.6
    argv = [bench.load, "run", bench.steps(1100), str(seconds)]
    solo = _solo(bench, [*argv[:3], "4"])
    two = _together([native(argv) for _ in range(2)], seconds)
    native_total = 100 * statistics.mean(sum(pair) for pair in zip(*two, strict=False)) / solo
    rows = []
    for name in (part for part in parts if part in SPLITS):
        percents = SPLITS[name]
        with ExitStack() as stack:
            tenants = [stack.enter_context(bench.slices.tenant(p, "8G", name=f"t{i}")) for i, p in enumerate(percents)]
            rates = _together([tenant.start(argv) for tenant in tenants], seconds)
        shares = [100 * statistics.median(_chunks(each, 4)) / solo for each in rates]
        whole = max(100, sum(percents))
        wanted = [100 * p / whole for p in percents]
        total = sum(100 * statistics.mean(each) / solo for each in rates)
        got = ", ".join(f"{x:.2f}" for x in shares)
        rows.append(
            Row(
                f"share.{name}.error_points",
                max(abs(a - b) for a, b in zip(shares, wanted, strict=True)),
                "points",
                "lower",
                f"got {got} % of solo",
            )
        )
        rows.append(
            Row(
                f"share.{name}.total_percent",
                total,
                "%",
                "higher",
                "of solo; native: two equal tenants, time-sliced",
                native=native_total,
            )
        )
        if name == "4_equal":
            jain = sum(shares) ** 2 / (len(shares) * sum(x * x for x in shares))
            rows.append(Row("share.4_equal.jain", jain, "index", "higher", "Jain's fairness index"))
    if "burst" in parts:
        rows += [_alone(bench, argv, solo), _beside_idle(bench, argv, solo)]
    if "processes" in parts:
        rows.append(_split_into_processes(bench, argv, seconds))
    return rows


def _alone(bench: Bench, argv: list[str], solo: float) -> Row:
    with bench.slices.tenant(25, policy="burst") as tenant:
        rates = _together([tenant.start(argv)], float(argv[3]))[0]
    got = 100 * statistics.median(rates) / solo
    return Row("share.burst_alone_percent", got, "%", "higher", "25 % burst, alone, of solo")


def _beside_idle(bench: Bench, argv: list[str], solo: float) -> Row:
    """A saturating tenant whose equal neighbour has a context, worked a moment ago, and has nothing to do now."""
    with bench.slices.tenant(50, "8G", "burst", "idle") as idle, bench.slices.tenant(50, "8G", "burst", "busy") as busy:
        resting = idle.start([bench.load, "ping", bench.steps(36), "1", "60000"]).ready()
        rates = _together([busy.start(argv)], float(argv[3]))[0]
        resting.process.kill()
        resting.process.wait()
    got = 100 * statistics.median(_chunks(rates, 4)) / solo
    return Row("share.burst_beside_idle_percent", got, "%", "higher", "50 % burst beside an idle 50 %, of solo")


def _split_into_processes(bench: Bench, argv: list[str], seconds: float) -> Row:
    """Two equal tenants, one with 8 processes: what the eight get together beside the one."""
    with bench.slices.tenant(50, "24G", name="many") as many, bench.slices.tenant(50, "8G", name="one") as one:
        rates = _together([*(many.start(argv) for _ in range(8)), one.start(argv)], seconds)
    eight = statistics.mean(sum(x) for x in zip(*rates[:8], strict=False))
    single = statistics.mean(rates[8])
    return Row(
        "share.8_processes_gain_percent",
        100 * (eight / single - 1),
        "%",
        "lower",
        f"8 processes {eight:.1f} kernels/s, the equal neighbour's one {single:.1f}",
    )


# --- latency ---

POLICIES = ("hard", "burst")


def latency(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """A 36 us kernel every 50 ms beside a neighbour that never pauses."""
    busy = [bench.load, "run", bench.steps(1100), "17"]
    ping = [bench.load, "ping", bench.steps(36), "15", "50"]

    def beside(start_busy: Callable[[list[str]], Program], start_ping: Callable[[list[str]], Program]) -> Any:
        neighbour, pinging = start_busy(busy).ready(), start_ping(ping).ready()
        neighbour.go()
        time.sleep(1)
        pinging.go()
        seen = pinging.answer()
        seen["neighbour"] = statistics.median(rates_of(neighbour.answer(), 4)[:26])
        return seen

    plain = beside(native, native)

    def under(start: Start) -> float | None:
        try:
            return float(beside(lambda argv: start(argv, 75), lambda argv: start(argv, 25))["p99_ms"])
        except RuntimeError as error:
            print(f"ping: {error}", file=sys.stderr)
            return None

    others = {"hami_core": under(HamiCore.start) if HamiCore.available else None, "mps": None}
    if Mps.available:
        daemon = Mps()
        try:
            others["mps"] = under(daemon.start)
        finally:
            daemon.stop()
    solo = _solo(bench, [*busy[:3], "4"])
    rows = []
    for policy in parts:
        with (
            bench.slices.tenant(75, "8G", policy, "busy") as one,
            bench.slices.tenant(25, "8G", policy, "pinging") as other,
        ):
            seen = beside(one.start, other.start)
        name = "latency.ping_p99_ms" if policy == "burst" else "latency.ping_hard_p99_ms"
        rows.append(
            Row(
                name,
                seen["p99_ms"],
                "ms",
                "lower",
                f"25:75 {policy}; median {seen['p50_ms']:.2f}, highest {seen['max_ms']:.2f} of {seen['count']}; the "
                f"neighbour got {100 * seen['neighbour'] / solo:.1f} % of solo, natively "
                f"{100 * plain['neighbour'] / solo:.1f} %",
                native=plain["p99_ms"],
                **others,
            )
        )
    return rows


# --- memory ---

PATHS = ("malloc", "pitch", "array", "mipmap", "vmm", "async", "pool", "graph", "context", "module")
QUOTA = "4G"


def _filled(program: Program, before: int) -> tuple[int, dict[str, Any]]:
    """Bytes that the GPU has less, by NVML, while the program holds what it got."""
    assert program.process.stdout
    line = program.process.stdout.readline()
    while line and not line.startswith("{"):
        line = program.process.stdout.readline()
    used = nvml_used() - before
    if not line:
        raise RuntimeError(program.process.stderr.read() if program.process.stderr else "no answer")
    program.process.communicate("\n", timeout=60)
    return used, {"line": line}


def memory(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """How much can be taken under a quota of 4 GiB, by each path; NVML's word, whole GPU."""
    rows = []
    for path in parts:
        values: dict[str, float | None] = {}
        argv = [bench.fill, path]
        starts: dict[str, Callable[[], Program]] = {}
        if HamiCore.available:
            starts["hami_core"] = lambda argv=argv: HamiCore.start(argv, 100, QUOTA)
        with bench.slices.tenant(100, QUOTA) as tenant:
            starts["ours"] = lambda argv=argv, tenant=tenant: tenant.start(argv)
            detail = ""
            for system, start in starts.items():
                before = nvml_used()
                try:
                    used, said = _filled(start(), before)
                except (RuntimeError, OSError) as error:
                    print(f"memory.{path} {system}: {str(error)[-300:]}", file=sys.stderr)
                    values[system] = None
                    continue
                values[system] = used
                if system == "ours":
                    detail = said["line"].strip()
                time.sleep(0.3)
        if values.get("ours") is not None:
            rows.append(
                Row(
                    f"memory.{path}.max_bytes",
                    float(values["ours"] or 0),
                    "bytes",
                    "lower",
                    f"quota 4294967296; {detail}",
                    hami_core=values.get("hami_core"),
                )
            )
    return rows


# --- cost ---

CALLS = {"launch_ns": ("launch", "400"), "alloc_free_us": ("alloc", "100")}
TRAINING = ("resnet50_train", "resnet18_infer", "tiny_ops", "decode")
COSTS = (*CALLS, "context_ms", *TRAINING)


def overhead(bench: Bench, parts: Sequence[str]) -> list[Row]:
    """What calls and whole programs cost in a slice of 100 %, beside natively."""
    with bench.slices.tenant(100, "36G") as tenant:
        return costs(bench, parts, tenant)


def costs(bench: Bench, parts: Sequence[str], tenant: Tenant, plain: Plain = native) -> list[Row]:
    """plain: how the other of each pair is started."""
    rows = [_call(name, [bench.load, *CALLS[name]], tenant, plain) for name in parts if name in CALLS]
    if "context_ms" in parts:
        rows.append(_context(bench, tenant, plain))
    script = str(Path(__file__).with_name("training.py"))
    return rows + [_ratio(name, [sys.executable, script, name], tenant, plain) for name in parts if name in TRAINING]


def _context(bench: Bench, tenant: Tenant, plain: Plain) -> Row:
    """Pairs of processes, in turns."""
    argv, name = [bench.load, "context"], "context_ms"
    return _cost(name, [(plain(argv).answer()[name], tenant.start(argv).answer()[name]) for _ in range(60)])


def _call(name: str, argv: list[str], tenant: Tenant, plain: Plain) -> Row:
    return _cost(name, _in_turns(argv, tenant, plain, "each"))


def _cost(name: str, pairs: list[Pair]) -> Row:
    plain, sliced = (statistics.median(values) for values in zip(*pairs, strict=True))
    more, low, high = _median([b - a for a, b in pairs])
    return Row(
        f"overhead.{name}",
        sliced,
        name.rsplit("_", 1)[1],
        "lower",
        f"{more:+.1f} ({low:+.1f} to {high:+.1f}), the median difference of {len(pairs)} pairs and its 95 % interval",
        native=plain,
    )


def _median(values: list[float]) -> tuple[float, float, float]:
    """The median, and between which the true one lies with 95 %: by order statistics, whatever the distribution."""
    ordered = sorted(values)
    reach = round(0.98 * len(ordered) ** 0.5)
    middle = len(ordered) // 2
    return statistics.median(ordered), ordered[max(0, middle - reach)], ordered[min(len(ordered) - 1, middle + reach)]


def _in_turns(argv: list[str], tenant: Tenant, how: Plain, answer: str) -> list[Pair]:
    """Answers without and in the slice, one straight after the other on the same two cores, from many processes.

    The machine's speed drifts and differs between cores by more than what is measured, and of two processes that do
    the same, one may be 5 % faster for all its life (where its memory lies).
    """
    cores = sorted(os.sched_getaffinity(0))
    started = []
    for number in range(PROCESSES):
        at = 2 * number % len(cores)
        os.sched_setaffinity(0, cores[at : at + 2])
        started.append((how(argv), tenant.start(argv)))
    os.sched_setaffinity(0, cores)
    pairs: list[Pair] = []
    try:
        for pair in started:
            for program in pair:
                program.ready()
        for turn in range(TURNS):
            for plain, sliced in started:
                order = (plain, sliced) if turn % 2 else (sliced, plain)
                found = {program: float(program.stretch()[answer]) for program in order}
                pairs.append((found[plain], found[sliced]))
    finally:
        for pair in started:
            for program in pair:
                program.end()
    return pairs


def _ratio(workload: str, argv: list[str], tenant: Tenant, how: Plain) -> Row:
    """Speed of a whole program in a slice, of that natively."""
    pairs = _in_turns(argv, tenant, how, "rate")
    ratio, low, high = _median([sliced / plain for plain, sliced in pairs])
    plain, sliced = (statistics.median(values) for values in zip(*pairs, strict=True))
    return Row(
        f"overhead.{workload}.ratio",
        ratio,
        "ratio",
        "higher",
        f"median ratio of {len(pairs)} pairs, 95 % interval {low:.3f} to {high:.3f}; in the slice {sliced:.1f} "
        f"steps/s, natively {plain:.1f}",
        native=1.0,
    )
