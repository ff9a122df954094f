"""The hub's side under load: 1,000 slices on 64 emulated GPUs, asked for at 50 a second, and the admin page with 1,000
users. A real vgpud with its guard, a real JupyterHub with its service. Writes benchmarks/results/cpu.json.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "hub")]

from hub import Admin, Hub  # noqa: E402
from results import Machine, Row, show, write  # noqa: E402
from support.node import Node, wait_until  # noqa: E402

SLICES, GPUS, A_SECOND = 1000, 64, 50
PAGES = 300
DEFAULT = '{"memory": 536870912, "cores": 6, "policy": "hard"}'
CONFIG = """
c.Authenticator.allowed_users = {"dean"}
c.JupyterHub.services = [{"name": "maker", "api_token": "a-token-that-may-make-users"}]
c.JupyterHub.load_roles = [{"name": "maker", "services": ["maker"], "scopes": ["admin:users"]}]
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def place_all(node: Node) -> tuple[list[float], float]:
    """Milliseconds of each, from the moment that it was due; and how many a second were done."""
    took: list[float] = []
    lock = threading.Lock()
    began = time.monotonic() + 0.5

    def ask(number: int) -> None:
        due = began + number / A_SECOND
        time.sleep(max(0.0, due - time.monotonic()))
        body = {
            "name": f"user{number}/",
            "memory": "512M",
            "cores": 6,
            "labels": {"jupyterhub_user": f"user{number}", "jupyterhub_default": DEFAULT},
            "ceiling": {"memory": "1G", "cores": 10},
        }
        node.client.request("POST", "/api/tenants", body)
        with lock:
            took.append(1e3 * (time.monotonic() - due))

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, range(SLICES)))
    return took, SLICES / (time.monotonic() - began)


def double_placements(node: Node) -> int:
    """GPUs that were promised beyond what they have, and slots of the ledger that two tenants have."""
    tenants = node.client.request("GET", "/api/tenants")["tenants"]
    over = 0
    for gpu in node.client.request("GET", "/api/gpus")["gpus"]:
        here = [tenant["quota"] for tenant in tenants if tenant["gpu"]["uuid"] == gpu["uuid"]]
        memory, cores = sum(quota["memory"] for quota in here), sum(quota["cores"] for quota in here)
        over += memory > gpu["memory"]["total"] or cores > gpu["cores"]["total"]
        over += memory != gpu["memory"]["reserved"]
    return over + len(tenants) - len({tenant["id"] for tenant in tenants}) + abs(SLICES - len(tenants))


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


def main() -> int:
    node = Node("--emulate", "--emulated-memory=8G", f"--emulated-gpus={GPUS}")
    try:
        took, a_second = place_all(node)
        twice = double_placements(node)
        hub = Hub(node, CONFIG.replace("{root}", str(node.root)))
        try:
            wait_until(lambda: requests.get(f"{hub.url}/services/vgpu/health", timeout=5).ok, 60, "the service")
            make_users(hub)
            admin = Admin(hub)
            wait_until(lambda: "1001 of 1001 users" in admin.page(), 60, "all users are on the page")
            pages = render(hub)
        finally:
            hub.stop()
    finally:
        node.stop()
    told = f"{SLICES} slices on {GPUS} emulated GPUs at {A_SECOND} a second"
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
