"""The hub's side under load: 1,000 servers with a slice on 8 nodes with 8 emulated GPUs each, asked for at 50 a second;
the queue behind them; 1,000 servers started by the hub's API, with slices and without; and the pages with all of them.
Real daemons with their guards, a real JupyterHub with its service, groups, quotas, GPU-hours and database; a server is
an address that answers, and no process. Writes benchmarks/results/cpu.json.
"""

from __future__ import annotations

import asyncio
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "hub"), str(ROOT / "spawner")]

from hub import Admin, Hub  # noqa: E402
from jupyter_vgpu_spawner.database import Database  # noqa: E402
from jupyter_vgpu_spawner.fleet import Fleet  # noqa: E402
from jupyter_vgpu_spawner.nodes import NodeConfig  # noqa: E402
from jupyter_vgpu_spawner.rules import Rule  # noqa: E402
from results import Machine, Row, show, write  # noqa: E402
from support.node import Node, wait_until  # noqa: E402

SLICES, NODES, GPUS, A_SECOND = 1000, 8, 64, 50
FULL, WAIT, GROUPS = 1024, 100, 10
ALL = FULL + WAIT
STARTS_AT_ONCE = 8
PAGES = 300
MEMORY = "/dev/shm"
"""A file system in memory, as /run is: on a disk the emulated GPUs' files would keep it busy for the databases."""
BARE = """
import sys
sys.path.insert(0, "{benchmarks}")
from loaded_hub import LoadHandler, StillGPUSpawner, StillSpawner
c.JupyterHub.spawner_class = StillSpawner
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.extra_handlers = [("/load", LoadHandler)]
c.Authenticator.allowed_users = {"dean"}
c.JupyterHub.services = [{"name": "maker", "api_token": "a-token-that-may-make-users"}]
c.JupyterHub.load_roles = [
    {"name": "maker", "services": ["maker"], "scopes": ["admin:users", "admin:groups", "servers"]},
]
"""
SLICED = """
c.JupyterHub.spawner_class = StillGPUSpawner
c.VGPUMixin.gpu_mem_limit = "512M"
c.VGPUMixin.gpu_core_limit = 6
c.VGPUMixin.gpu_slices = []
c.VGPUMixin.gpu_hours = 40
c.VGPUMixin.vgpu_nodes = {nodes}
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="{database}")
"""
MAKER = {"Authorization": "token a-token-that-may-make-users"}


@dataclass
class Found:
    """Milliseconds of each of many; how many a second."""

    starts: list[float] = field(default_factory=list)
    starts_a_second: float = 0.0
    asks: list[float] = field(default_factory=list)
    turns_a_second: float = 0.0
    twice: int = 0
    servers_a_second: float = 0.0
    bare_a_second: float = 0.0
    pages: dict[str, list[float]] = field(default_factory=dict)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def users(first: int, last: int) -> list[str]:
    return [f"user{number}" for number in range(first, last)]


def load(hub: Hub, work: str, names: list[str]) -> tuple[list[float], float]:
    """See LoadHandler."""
    asked = {"work": work, "users": names, "a_second": A_SECOND}
    answer = requests.post(f"{hub.url}/hub/load", json=asked, timeout=300)
    answer.raise_for_status()
    return answer.json()["took"], answer.json()["a_second"]


async def double_placements(fleet: Fleet, slices: int) -> int:
    """GPUs that were promised beyond what they have, slices that are twice or not at all."""
    view = await fleet.look()
    over = 0
    for gpu in view.gpus:
        here = [tenant["quota"] for tenant in view.tenants if tenant["gpu"]["uuid"] == gpu["uuid"]]
        memory, cores = sum(quota["memory"] for quota in here), sum(quota["cores"] for quota in here)
        over += memory > gpu["memory"]["total"] or cores > gpu["cores"]["total"]
        over += memory != gpu["memory"]["reserved"]
    return over + len(view.tenants) - len(view.names) + abs(slices - len(view.tenants))


def timed(page: Callable[[], str], has: str) -> list[float]:
    """Milliseconds of each of PAGES, with what it has to tell."""
    page()
    took = []
    for _ in range(PAGES):
        began = time.monotonic()
        told = page()
        took.append(1e3 * (time.monotonic() - began))
        assert has in told, f"the page lacks {has!r}"
    return took


def make_users(hub: Hub, count: int) -> None:
    def post(path: str, body: dict[str, Any] | None = None) -> None:
        requests.post(f"{hub.url}/hub/api/{path}", json=body, headers=MAKER, timeout=60).raise_for_status()

    for first in range(0, count, 100):
        post("users", {"usernames": users(first, min(first + 100, count))})
    for number in range(GROUPS):
        post(f"groups/course{number}")
        post(f"groups/course{number}/users", {"users": [f"user{each}" for each in range(number, count, GROUPS)]})
        rule = {"vgpu": {"cores": 6, "share": 1 + number}}
        url = f"{hub.url}/hub/api/groups/course{number}/properties"
        requests.put(url, json=rule, headers=MAKER, timeout=60).raise_for_status()


def start_all(hub: Hub, names: list[str]) -> float:
    """Servers that were up, a second."""

    def start(name: str) -> None:
        answer = requests.post(f"{hub.url}/hub/api/users/{name}/server", headers=MAKER, timeout=120)
        assert answer.status_code == 201, f"{answer.status_code}: {answer.text}"

    began = time.monotonic()
    with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
        list(pool.map(start, names))
    return len(names) / (time.monotonic() - began)


def stop_all(hub: Hub, names: list[str]) -> None:
    def stop(name: str) -> None:
        requests.delete(f"{hub.url}/hub/api/users/{name}/server", headers=MAKER, timeout=120).raise_for_status()

    with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
        list(pool.map(stop, names))


def queue(hub: Hub, admin: Admin, fleet: Fleet, found: Found) -> None:
    """All GPUs are full: so many more ask, and as many end."""
    start_all(hub, users(SLICES, FULL))
    late = users(FULL, FULL + WAIT)
    found.asks, _ = load(hub, "ask", late)
    found.pages[f"admin page, {WAIT} waiting,"] = timed(admin.page, f"{ALL + 1} of {ALL + 1} users")
    began = time.monotonic()
    stop_all(hub, users(0, WAIT))

    def have() -> set[str]:
        return asyncio.run(fleet.tenants()).names & {f"{name}/" for name in late}

    end = began + 120
    while len(have()) < WAIT:  # seldom, for each look at a thousand slices slows down what is measured
        assert time.monotonic() < end, "who waited has no slice"
        time.sleep(0.5)
    found.turns_a_second = WAIT / (time.monotonic() - began)
    found.twice += asyncio.run(double_placements(fleet, FULL))


def measure(nodes: list[Node]) -> Found:
    found = Found()
    fleet = Fleet([NodeConfig(f"node{number}", node.client.where) for number, node in enumerate(nodes)])
    named = {config.name: {"vgpud": config.vgpud} for config in fleet.configs.values()}
    root = nodes[0].root
    bare = BARE.replace("{benchmarks}", str(Path(__file__).parent))
    database = f"sqlite:///{root}/vgpu.sqlite"
    hub = Hub(nodes[0], bare + SLICED.replace("{database}", database).replace("{nodes}", repr(named)))
    try:
        wait_until(lambda: requests.get(f"{hub.url}/services/vgpu/health", timeout=5).ok, 60, "the service")
        make_users(hub, ALL)
        rules = Database(database)
        for name in users(0, ALL)[::5]:
            rules.set_rule(name, Rule(hours=30), "the benchmark")
        admin = Admin(hub)
        wait_until(lambda: f"{ALL + 1} of {ALL + 1} users" in admin.page(), 60, "all users are seen")
        found.starts, found.starts_a_second = load(hub, "start", users(0, SLICES))
        found.twice += asyncio.run(double_placements(fleet, SLICES))
        load(hub, "stop", users(0, SLICES))
        found.servers_a_second = start_all(hub, users(0, SLICES))
        found.twice += asyncio.run(double_placements(fleet, SLICES))
        dean = hub.user("dean")
        found.pages["admin page"] = timed(admin.page, f"{ALL + 1} of {ALL + 1} users")
        found.pages["spawn page"] = timed(dean.spawn_page, "512 MiB of GPU memory, 6 % of its compute")
        queue(hub, admin, fleet, found)
    finally:
        hub.stop()
    return found


def measure_bare(node: Node) -> float:
    """The same hub without slices."""
    hub = Hub(node, BARE.replace("{benchmarks}", str(Path(__file__).parent)))
    try:
        make_users(hub, ALL)
        load(hub, "start", users(0, SLICES))  # as the other hub has done
        load(hub, "stop", users(0, SLICES))
        return start_all(hub, users(0, SLICES))
    finally:
        hub.stop()


def main() -> int:
    each = f"--emulated-gpus={GPUS // NODES}"
    nodes: list[Node] = []
    with ExitStack() as stack:
        run = stack.enter_context(tempfile.TemporaryDirectory(prefix="vgpu-", dir=MEMORY, ignore_cleanup_errors=True))
        while len(nodes) < NODES:
            nodes.append(Node("--emulate", "--emulated-memory=8G", each, run_dir=Path(run, str(len(nodes)))))
            stack.callback(nodes[-1].stop)
        bare = measure_bare(nodes[1])
        found = measure(nodes)
        found.bare_a_second = bare
    told = f"{SLICES} slices on {NODES} nodes with {GPUS} emulated GPUs together, {A_SECOND} a second"
    rows = [
        Row(
            "hub.placement_p99_ms",
            percentile(found.starts, 0.99),
            "ms",
            "lower",
            f"a start's way through the hub's spawner, from the moment that it was due: groups, quotas, hours, queue, "
            f"nodes; {told}; median {statistics.median(found.starts):.1f}",
        ),
        Row("hub.double_placements", found.twice, "slices", "lower", f"{told}; and after {WAIT} came from the queue"),
        Row("hub.spawns_per_s", found.starts_a_second, "1/s", "higher", f"starts of the hub's spawners; {told}"),
        Row(
            "hub.server_starts_per_s",
            found.servers_a_second,
            "1/s",
            "higher",
            f"servers with a slice by a hub's API, {STARTS_AT_ONCE} requests at once, {SLICES} in all; native: the "
            "same hub without slices",
            native=found.bare_a_second,
        ),
        Row(
            "hub.ask_p99_ms",
            percentile(found.asks, 0.99),
            "ms",
            "lower",
            f"the spawn page's form, where all is full: {WAIT} are put into the queue, {A_SECOND} a second; median "
            f"{statistics.median(found.asks):.1f}",
        ),
        Row(
            "hub.queue_turns_per_s",
            found.turns_a_second,
            "1/s",
            "higher",
            f"servers of {WAIT} who waited, from the first of {WAIT} that ended to the last that had its slice",
        ),
        Row(
            "hub.render_p99_ms",
            max(percentile(took, 0.99) for took in found.pages.values()),
            "ms",
            "lower",
            f"with {SLICES} slices, {PAGES} times: "
            + "; ".join(
                f"{name} {percentile(took, 0.99):.0f}, median {statistics.median(took):.0f}"
                for name, took in found.pages.items()
            ),
        ),
    ]
    write("cpu", Machine(f"emulated GPU, {os.cpu_count()} cores, Linux {platform.release()}", "emulated"), rows)
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
