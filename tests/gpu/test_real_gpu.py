"""On a real NVIDIA GPU: the guard with the nvidia backend and the shim, under PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from support.gpu import nvml_process_bytes
from support.node import CLI, Node, wait_until

pytestmark = pytest.mark.gpu

GIB = 1 << 30
MIB = 1 << 20


def torch_in_slice(node: Node, tenant: dict[str, Any], code: str) -> dict[str, Any]:
    """Run code in the slice; it prints one JSON object last."""
    process = node.spawn(tenant, sys.executable, "-c", code)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return answer


HOLD = """
import json, sys, time, torch
block = torch.empty(%d, dtype=torch.uint8, device="cuda"); torch.cuda.synchronize()
print("holding", flush=True)
sys.stdin.readline()
"""


def test_the_slice_is_what_torch_sees(gpu_node: Node) -> None:
    tenant = gpu_node.tenant("4G", 25, "sees")
    seen = torch_in_slice(
        gpu_node,
        tenant,
        """
import json, torch
free, total = torch.cuda.mem_get_info()
import pynvml; pynvml.nvmlInit(); h = pynvml.nvmlDeviceGetHandleByIndex(0); m = pynvml.nvmlDeviceGetMemoryInfo(h)
print(json.dumps({"free": free, "total": total, "properties": torch.cuda.get_device_properties(0).total_memory,
                  "nvml_total": m.total, "nvml_used": m.used}))
""",
    )
    assert seen["total"] == seen["properties"] == seen["nvml_total"] == 4 * GIB
    assert abs((seen["total"] - seen["free"]) - seen["nvml_used"]) < 8 * MIB
    gpu_node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def test_the_quota_holds_and_the_error_is_pytorchs_own(gpu_node: Node) -> None:
    tenant = gpu_node.tenant("4G", 25, "holds")
    seen = torch_in_slice(
        gpu_node,
        tenant,
        """
import json, torch
blocks = []; message = ""
try:
    while True: blocks.append(torch.empty(32 << 20, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError as error: message = str(error)
print(json.dumps({"mib": len(blocks) * 32, "message": message}))
""",
    )
    # the quota less the context (about 513 MiB on this card), less what one block and PyTorch's rounding may leave
    assert 3300 <= seen["mib"] <= 3600, seen
    assert "CUDA out of memory" in seen["message"]
    assert gpu_node.show("holds")["refusals"]["count"] >= 1
    gpu_node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def test_without_the_shim_the_quota_holds_and_cuda_works(gpu_node: Node) -> None:
    tenant = gpu_node.tenant("4G", 50, "bare")
    code = """
import json, threading, time, torch
for _ in range(8): threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()  # and one that never rests
total, blocks = torch.ones(1000, device="cuda").sum().item(), []
try:
    while True: blocks.append(torch.empty(32 << 20, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError: pass
print(json.dumps({"mib": len(blocks) * 32, "total": torch.cuda.mem_get_info()[1], "sum": total}))
"""
    process = gpu_node.spawn(tenant, "env", "-u", "LD_PRELOAD", sys.executable, "-c", code)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    seen = json.loads(out.strip().splitlines()[-1])
    assert 3300 <= seen["mib"] <= 3600, seen
    assert seen["total"] > 4 * GIB  # it sees the card, and can't have it
    assert seen["sum"] == 1000
    gpu_node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def test_memory_is_attributed_to_its_process_and_agrees_with_nvml(gpu_node: Node) -> None:
    tenant = gpu_node.tenant("8G", 50, "attributed")
    process = gpu_node.spawn(tenant, sys.executable, "-c", HOLD % (2 * GIB), stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline().strip() == "holding"
    try:
        view = gpu_node.show("attributed")
        ours = {row["pid"]: row["memory"] for row in view["processes"]}
        witness = nvml_process_bytes()
        print("ledger", ours, "nvml", witness)
        assert set(ours) == {process.pid}
        assert abs(ours[process.pid] - witness[process.pid]) <= max(32 * MIB, witness[process.pid] // 100)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: gpu_node.used("attributed") == 0, 2, "the ledger is empty after kill -9")
    gpu_node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


RATE = """
import json, time, torch
a = torch.randn(2048, 2048, device="cuda"); b = a @ a; torch.cuda.synchronize()
end = time.time() + 4; n = 0
while time.time() < end:
    for _ in range(20): b = a @ a
    torch.cuda.synchronize(); n += 20
print(json.dumps({"rate": n / 4}))
"""


def test_a_quarter_of_the_gpu_does_a_quarter_of_the_work(gpu_node: Node) -> None:
    whole = gpu_node.tenant("8G", 100, "whole")
    alone = torch_in_slice(gpu_node, whole, RATE)["rate"]
    gpu_node.client.request("DELETE", f"/api/tenants/{whole['id']}")
    quarter = gpu_node.tenant("8G", 25, "quarter")
    limited = torch_in_slice(gpu_node, quarter, RATE)["rate"]
    gpu_node.client.request("DELETE", f"/api/tenants/{quarter['id']}")
    print("whole", alone, "quarter", limited, "share", limited / alone)
    assert 0.20 < limited / alone < 0.30


def test_a_killed_guard_makes_a_torch_process_wait_not_fail(gpu_node: Node) -> None:
    tenant = gpu_node.tenant("4G", 50, "killed")
    code = """
import json, time, torch
end = time.time() + 6; n = 0; a = torch.randn(512, 512, device="cuda")
while time.time() < end:
    block = torch.empty(64 << 20, dtype=torch.uint8, device="cuda"); (a @ a).sum().item(); del block
    torch.cuda.empty_cache(); n += 1
try: torch.empty(5 << 30, dtype=torch.uint8, device="cuda"); refused = False
except torch.OutOfMemoryError: refused = True
print(json.dumps({"rounds": n, "refused": refused}))
"""
    process = gpu_node.spawn(tenant, sys.executable, "-c", code)
    wait_until(lambda: gpu_node.used("killed") > 0, 30, "torch is up")
    for _ in range(5):
        old = gpu_node.kill_guard()
        wait_until(lambda old=old: gpu_node.guard_pid() != old, 5, "another guard")
        time.sleep(0.5)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    seen = json.loads(out.strip().splitlines()[-1])
    assert seen["rounds"] > 10
    assert seen["refused"]
    gpu_node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def test_jupyter_vgpu_run_gives_back_the_commands_exit_code(gpu_node: Node) -> None:
    code = "import torch, sys; free, total = torch.cuda.mem_get_info(); sys.exit(7 if total == 2 << 30 else 1)"
    result = subprocess.run(
        [
            *CLI,
            "run",
            "--run-dir",
            str(gpu_node.run_dir),
            "--mem",
            "2G",
            "--cores",
            "10",
            "--",
            sys.executable,
            "-c",
            code,
        ],
        timeout=120,
    )
    assert result.returncode == 7
    assert gpu_node.client.request("GET", "/api/tenants")["tenants"] == []


@pytest.mark.parametrize("tier", ["guard", "shim"])
def test_launches_are_counted_as_pytorch_makes_them(tier: str) -> None:
    node = Node(*(["--NodeApp.force_shim_tier=True"] if tier == "shim" else []))
    try:
        seen = torch_in_slice(
            node,
            node.tenant("4G", 50, "counts"),
            """
import json, threading, torch
from jupyter_vgpu.inside import launches
a = torch.ones(1000, device="cuda"); a.add_(1); torch.cuda.synchronize()
def add(): [a.add_(1) for _ in range(100)]
def counted(work):
    before = launches(); work(); torch.cuda.synchronize(); return launches() - before
def threads():
    all_ = [threading.Thread(target=add) for _ in range(4)]
    [each.start() for each in all_]; [each.join() for each in all_]
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph): add()
print(json.dumps([counted(add), counted(threads), counted(lambda: [graph.replay() for _ in range(5)])]))
""",
        )
        assert seen == [100, 400, 5]
    finally:
        node.stop()
