"""Idle tenants on the real driver: taken off the GPU unasked, and back as soon as they have work, of whatever kind."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.node import Node

pytestmark = pytest.mark.gpu

CASES = ["short", "long", "value", "host", "event", "copies", "graph", "rests"]
STEPS_OF_MS = 18_700  # loop rounds a millisecond, about; only that it is long matters


def spinning(node: Node, tenant: dict[str, Any], load: Path, seconds: float) -> subprocess.Popen[str]:
    process = node.spawn(tenant, str(load), "run", str(STEPS_OF_MS), str(seconds), stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline().strip() == "ready"
    process.stdin.write("go\n")
    process.stdin.flush()
    return process


@pytest.mark.parametrize("policy", ["hard", "burst"])
def test_whatever_waits_or_comes_after_a_rest_goes_on(gpu_node: Node, load: Path, waits: Path, policy: str) -> None:
    busy = gpu_node.tenant("4G", 50, "busy", policy=policy)
    rested = gpu_node.tenant("4G", 25, "rested", policy=policy)
    neighbour = spinning(gpu_node, busy, load, 60)
    try:
        process = gpu_node.spawn(rested, str(waits), str(500 * STEPS_OF_MS))
        out, err = process.communicate(timeout=50)
        seen = {row["case"]: row["seconds"] for row in map(json.loads, out.splitlines())}
        print(policy, seen)
        assert process.returncode == 0, err
        assert list(seen) == CASES
        # a quarter of the GPU, and waits of 0.3 and 0.6 s: nobody was forgotten for a while
        assert all(seconds < 8 for seconds in seen.values())
    finally:
        neighbour.kill()
        neighbour.wait()
        for made in (busy, rested):
            gpu_node.client.request("DELETE", f"/api/tenants/{made['id']}")


def test_an_idle_notebook_leaves_the_gpu_to_the_others(gpu_node: Node, load: Path) -> None:
    idle, busy = (gpu_node.tenant("4G", 50, name, policy="burst") for name in ("idle", "busy"))
    code = "import sys, torch\na = torch.randn(999, 999, device='cuda'); print((a @ a).sum().item(), flush=True)\n"
    notebook = gpu_node.spawn(
        idle, "python3", "-c", code + "sys.stdin.readline(); print((a @ a).sum().item())", stdin=subprocess.PIPE
    )
    assert notebook.stdout
    first = notebook.stdout.readline()
    neighbour = spinning(gpu_node, busy, load, 4)
    time.sleep(1)
    before = gpu_node.show("idle")["usage"]["on_gpu_ns"]
    time.sleep(2)
    assert gpu_node.show("idle")["usage"]["on_gpu_ns"] == before
    second, err = notebook.communicate("\n", timeout=20)
    assert second == first, err
    neighbour.communicate(timeout=20)
    for made in (idle, busy):
        gpu_node.client.request("DELETE", f"/api/tenants/{made['id']}")
