"""On a machine with two real GPUs: each slice has its own, and no way to the other."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import pynvml
import pytest
from support.node import Node, left_out

pytestmark = pytest.mark.gpu

GIB = 1 << 30
LOOK = """
import json, os, sys, torch
count = torch.cuda.device_count()
seen = {"count": count, "uuid": str(torch.cuda.get_device_properties(0).uuid) if count else None, "mib": 0, "error": ""}
blocks = []
try:
    while True:
        blocks.append(torch.empty(32 << 20, dtype=torch.uint8, device="cuda:" + sys.argv[1]))
        seen["mib"] += 32
except Exception as error:
    seen["error"] = str(error).splitlines()[0]
print(json.dumps(seen), flush=True)
"""


@pytest.fixture(scope="module")
def uuids() -> list[str]:
    pynvml.nvmlInit()
    found = [
        str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        for index in range(pynvml.nvmlDeviceGetCount())
    ]
    if len(found) < 2:
        left_out("this machine has one GPU")
    return found


def look(node: Node, tenant: dict[str, Any], *, device: int = 0, **environment: str) -> dict[str, Any]:
    """What PyTorch finds in the slice, and how much of `device` it gets."""
    process = node.spawn(tenant, sys.executable, "-c", LOOK, str(device), env=environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    seen: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return seen


def test_each_slice_has_the_gpu_that_it_asked_for_alone(gpu_node: Node, uuids: list[str]) -> None:
    first = gpu_node.tenant("4G", 25, "first", gpu=uuids[0])
    alone = gpu_node.tenant("6G", 50, "alone", exclusive=True)
    assert alone["gpu"]["uuid"] == uuids[1]
    for tenant, uuid, most in ((first, uuids[0], 4), (alone, uuids[1], 6)):
        seen = look(gpu_node, tenant)
        assert (seen["count"], seen["uuid"]) == (1, uuid.removeprefix("GPU-"))
        assert (most - 1) * 1024 < seen["mib"] < most * 1024, seen
        gpu_node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


@pytest.mark.parametrize("shim", [True, False])
@pytest.mark.parametrize("mine", [0, 1])
def test_another_gpus_memory_is_out_of_reach_whatever_is_set(
    gpu_node: Node, uuids: list[str], mine: int, shim: bool
) -> None:
    tenant = gpu_node.tenant("2G", 25, f"reach{mine}{shim}", gpu=uuids[mine])
    other = uuids[1 - mine]
    preload = {} if shim else {"LD_PRELOAD": ""}
    try:
        for device, visible in ((0, other), (1 - mine, ",".join(uuids)), (0, str(1 - mine))):
            seen = look(gpu_node, tenant, device=device, CUDA_VISIBLE_DEVICES=visible, **preload)
            # of two that are visible the own one may be counted as any of them
            assert seen["mib"] <= (2048 if "," in visible else 0), (visible, seen)
            assert gpu_node.show(tenant["id"])["usage"]["memory_peak"] <= 2 * GIB
            assert "busy or unavailable" in seen["error"]
    finally:
        gpu_node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def test_one_gpu_is_guarded_beside_one_that_mps_shares(uuids: list[str]) -> None:
    if not shutil.which("nvidia-cuda-mps-control"):
        left_out("there is no nvidia-cuda-mps-control")
    node = Node("--NodeApp.mps_gpus=['1']")
    try:
        guarded = node.tenant("2G", 25, "guarded")
        shared = node.tenant("4G", 25, "shared", model="MPS")
        for tenant, tier, uuid, most in ((guarded, "guard", uuids[0], 2), (shared, "shim", uuids[1], 4)):
            seen = look(node, tenant)
            assert (seen["count"], seen["uuid"]) == (1, uuid.removeprefix("GPU-"))
            assert (most - 1) * 1024 < seen["mib"] < most * 1024, seen
            assert node.show(tenant["id"])["tier"] == tier
        pipes = str(node.run_dir / "mps")
        for more in ({}, {"LD_PRELOAD": ""}, {"CUDA_MPS_PIPE_DIRECTORY": pipes}):  # nor does the guarded one get there
            seen = look(node, guarded, CUDA_VISIBLE_DEVICES=uuids[1], **more)
            assert seen["mib"] == 0, (more, seen)
    finally:
        node.stop()
