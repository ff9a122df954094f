"""On a real NVIDIA GPU: OpenGL in a slice, whose library takes the driver's older doors and several clients a file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gpu import Witness
from support.node import Node, left_out, wait_until
from support.programs import build

pytestmark = pytest.mark.gpu

MIB = 1 << 20


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = build(tmp_path_factory.mktemp("render") / "render", Path(__file__).with_name("render.c"))
    if subprocess.run([program, "1"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 2:
        left_out("OpenGL does not start on this machine (libEGL and NVIDIA's vendor file are needed)")
    return program


@pytest.fixture
def tenant(gpu_node: Node) -> Iterator[dict[str, Any]]:
    made = gpu_node.tenant("1G", 50, "renders")
    yield made
    gpu_node.client.request("DELETE", f"/api/tenants/{made['id']}")


def draw(node: Node, tenant: dict[str, Any], program: Path, buffers: int) -> tuple[dict[str, Any], int, int]:
    """What it says, what the ledger holds while it waits, and the most that NVML saw."""
    with Witness() as witness:
        process = node.spawn(tenant, str(program), str(buffers), stdin=subprocess.PIPE)
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.communicate(timeout=30)[1]
        used = node.used("renders")
        process.communicate("\n", timeout=60)
    seen: dict[str, Any] = json.loads(line)
    print(seen, "ledger MiB", used / MIB, "NVML MiB", witness.most / MIB)
    return seen, used, witness.most


def test_opengl_renders_in_a_slice(gpu_node: Node, tenant: dict[str, Any], render: Path) -> None:
    seen, used, most = draw(gpu_node, tenant, render, 8)
    assert seen["error"] == 0
    assert seen["cleared"] == 8
    assert used >= 512 * MIB
    assert abs(most - used) <= 32 * MIB
    wait_until(lambda: gpu_node.used("renders") == 0, 1, "all is given back at exit")


def test_opengl_is_held_to_the_quota(gpu_node: Node, tenant: dict[str, Any], render: Path) -> None:
    seen, used, most = draw(gpu_node, tenant, render, 40)
    assert used <= 1024 * MIB
    assert most <= (1024 + 32) * MIB
    assert seen["cleared"] * 64 * MIB == seen["bytes"]  # what it was given, in whatever memory, works
    assert used >= (1024 - 128) * MIB or seen["error"]
    wait_until(lambda: gpu_node.used("renders") == 0, 1, "all is given back at exit")
