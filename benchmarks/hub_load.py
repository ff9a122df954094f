"""The hub's side under load: 1,000 slices on 8 nodes with 8 emulated GPUs each, asked for at 50 a second; 1,000 servers
started by a hub; and the admin page with all of them. Real daemons with their guards, a real JupyterHub with its
service; a server is an address that answers, and no process. Writes benchmarks/results/cpu.json.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "hub"), str(ROOT / "spawner")]

from hub import Admin, Hub  # noqa: E402
from jupyter_vgpu_spawner.fleet import Fleet  # noqa: E402
from jupyter_vgpu_spawner.nodes import NodeConfig, Packing  # noqa: E402
from results import Machine, Row, show, write  # noqa: E402
from support.node import Node, wait_until  # noqa: E402

from jupyter_vgpu.quotas import Quota  # noqa: E402

SLICES, NODES, GPUS, A_SECOND = 1000, 8, 64, 50
STARTS_AT_ONCE = 8
PAGES = 300
QUOTA = Quota(512 << 20, 6)
CONFIG = """
import http.server, threading
from jupyterhub.spawner import Spawner
from jupyter_vgpu_spawner import setup_vgpu
from jupyter_vgpu_spawner.mixin import VGPUMixin

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass

answers = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=answers.serve_forever, daemon=True).start()

class Still(Spawner):
    started = False
    async def start(self):
        self.started = True
        return answers.server_address
    async def stop(self, now=False):
        self.started = False
    async def poll(self):
        return None if self.started else 0

class StillSpawner(VGPUMixin, Still):
    pass

c.JupyterHub.spawner_class = StillSpawner
c.JupyterHub.concurrent_spawn_limit = 0
c.Authenticator.allowed_users = {"dean"}
c.JupyterHub.services = [{"name": "maker", "api_token": "a-token-that-may-make-users"}]
c.JupyterHub.load_roles = [{"name": "maker", "services": ["maker"], "scopes": ["admin:users", "servers"]}]
c.VGPUMixin.gpu_mem_limit = "512M"
c.VGPUMixin.gpu_core_limit = 6
c.VGPUMixin.gpu_slices = []
c.VGPUMixin.vgpu_nodes = {nodes}
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def place_all(fleet: Fleet) -> tuple[list[float], float]:
    """Milliseconds of each, from the moment that it was due; and how many a second were done."""
    took: list[float] = []
    began = time.monotonic() + 0.5

    async def ask(number: int) -> None:
        due = began + number / A_SECOND
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await fleet.place(QUOTA, {"name": f"bench{number}/", **QUOTA.as_json()}, Packing.SPREAD)
        took.append(1e3 * (time.monotonic() - due))

    await asyncio.gather(*(ask(number) for number in range(SLICES)))
    return took, SLICES / (time.monotonic() - began)


async def double_placements(fleet: Fleet) -> int:
    """GPUs that were promised beyond what they have, slices that are twice or not at all."""
    view = await fleet.look()
    over = 0
    for gpu in view.gpus:
        here = [tenant["quota"] for tenant in view.tenants if tenant["gpu"]["uuid"] == gpu["uuid"]]
        memory, cores = sum(quota["memory"] for quota in here), sum(quota["cores"] for quota in here)
        over += memory > gpu["memory"]["total"] or cores > gpu["cores"]["total"]
        over += memory != gpu["memory"]["reserved"]
    return over + len(view.tenants) - len(view.names) + abs(SLICES - len(view.tenants))


async def remove_all(fleet: Fleet) -> None:
    for tenant in (await fleet.tenants()).tenants:
        await fleet.ask(tenant, "DELETE")


def render(hub: Hub) -> list[float]:
    """Milliseconds of the admin page."""
    admin = Admin(hub)
    admin.page()
    took = []
    for _ in range(PAGES):
        began = time.monotonic()
        page = admin.page()
        took.append(1e3 * (time.monotonic() - began))
        assert "1001 of 1001 users" in page
    return took


def make_users(hub: Hub) -> None:
    headers = {"Authorization": "token a-token-that-may-make-users"}
    for first in range(0, SLICES, 100):
        body: dict[str, Any] = {"usernames": [f"user{number}" for number in range(first, first + 100)]}
        requests.post(f"{hub.url}/hub/api/users", json=body, headers=headers, timeout=60).raise_for_status()


def start_all(hub: Hub) -> float:
    """Servers that were up, a second."""
    headers = {"Authorization": "token a-token-that-may-make-users"}

    def start(number: int) -> None:
        url = f"{hub.url}/hub/api/users/user{number}/server"
        answer = requests.post(url, headers=headers, timeout=120)
        assert answer.status_code in (201, 202), answer.text

    began = time.monotonic()
    with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
        list(pool.map(start, range(SLICES)))
    return SLICES / (time.monotonic() - began)


def measure(nodes: list[Node]) -> tuple[list[float], float, int, float, list[float]]:
    fleet = Fleet([NodeConfig(f"node{number}", node.client.where) for number, node in enumerate(nodes)])
    took, a_second = asyncio.run(place_all(fleet))
    twice = asyncio.run(double_placements(fleet))
    asyncio.run(remove_all(fleet))
    root = nodes[0].root
    named = {config.name: {"vgpud": config.vgpud} for config in fleet.configs.values()}
    hub = Hub(nodes[0], CONFIG.replace("{root}", str(root)).replace("{nodes}", repr(named)))
    try:
        wait_until(lambda: requests.get(f"{hub.url}/services/vgpu/health", timeout=5).ok, 60, "the service")
        make_users(hub)
        starts = start_all(hub)
        admin = Admin(hub)
        wait_until(lambda: "1001 of 1001 users" in admin.page(), 60, "all users are on the page")
        wait_until(lambda: len(asyncio.run(fleet.tenants()).tenants) == SLICES, 60, "every server has its slice")
        twice += asyncio.run(double_placements(fleet))
        pages = render(hub)
    finally:
        hub.stop()
    return took, a_second, twice, starts, pages


def main() -> int:
    each = f"--emulated-gpus={GPUS // NODES}"
    nodes: list[Node] = []
    try:
        while len(nodes) < NODES:
            nodes.append(Node("--emulate", "--emulated-memory=8G", each))
        took, a_second, twice, starts, pages = measure(nodes)
    finally:
        for node in nodes:
            node.stop()
    told = f"{SLICES} slices on {NODES} nodes with {GPUS} emulated GPUs together, {A_SECOND} a second"
    rows = [
        Row(
            "hub.placement_p99_ms",
            percentile(took, 0.99),
            "ms",
            "lower",
            f"{told}; median {statistics.median(took):.1f}",
        ),
        Row("hub.double_placements", twice, "slices", "lower", told),
        Row("hub.spawns_per_s", a_second, "1/s", "higher", f"slices opened; {told}"),
        Row(
            "hub.server_starts_per_s",
            starts,
            "1/s",
            "higher",
            f"servers with a slice by a hub's API, {STARTS_AT_ONCE} requests at once, {SLICES} in all",
        ),
        Row(
            "hub.render_p99_ms",
            percentile(pages, 0.99),
            "ms",
            "lower",
            f"admin page with {SLICES} users and slices, {PAGES} times; median {statistics.median(pages):.0f}",
        ),
    ]
    write("cpu", Machine(f"emulated GPU, {os.cpu_count()} cores, Linux {platform.release()}", "emulated"), rows)
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
