"""On a real NVIDIA GPU: what the panel says of each notebook is what the driver says of its processes."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from support.gpu import nvml_process_bytes
from support.node import Node

from jupyter_vgpu.extension.attribution import Owner, attribute

pytestmark = pytest.mark.gpu

MIB = 1 << 20
# a kernel, and one that works in a child as DataLoader's and !python's do
HOLD = """
import sys, torch
held = torch.zeros(int(sys.argv[1]) << 18, device="cuda")
held.add_(1); (torch.ones(512, 512, device="cuda") @ torch.ones(512, 512, device="cuda")).sum().item()
print("ready", flush=True); sys.stdin.readline()
"""
IN_CHILD = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', *sys.argv[1:]]))"


def test_memory_of_two_kernels_is_what_nvml_says_of_each(gpu_node: Node) -> None:
    pytest.importorskip("torch")
    tenant = gpu_node.tenant("8G", 100, "student")
    kernels: dict[str, subprocess.Popen[str]] = {
        "train.ipynb": gpu_node.spawn(tenant, sys.executable, "-c", HOLD, "1000", stdin=subprocess.PIPE),
        "other.ipynb": gpu_node.spawn(tenant, sys.executable, "-c", IN_CHILD, HOLD, "300", stdin=subprocess.PIPE),
    }
    for kernel in kernels.values():
        assert kernel.stdout
        assert kernel.stdout.readline() == "ready\n"
    time.sleep(1.5)  # vgpud looks once a second
    parents = parents_of_all()
    owners = {kernel.pid: Owner("notebook", name, name, name) for name, kernel in kernels.items()}
    rows: dict[str, Any] = {
        row["name"]: row for row in attribute(gpu_node.show("student")["processes"], owners, parents.get)
    }
    driver = nvml_process_bytes()
    assert set(rows) == set(kernels)
    for name, row in rows.items():
        told = sum(driver[pid] for pid in row["pids"])
        print(name, row["memory"] / MIB, told / MIB)
        assert abs(row["memory"] - told) <= max(told // 100, 32 * MIB)
    for kernel in kernels.values():
        kernel.communicate("\n", timeout=30)
    gpu_node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def parents_of_all() -> dict[int, int]:
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.splitlines()
    return {int(pid): int(parent) for pid, parent in (line.split() for line in lines)}
