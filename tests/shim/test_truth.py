"""Whoever asks for the GPU's numbers in a slice hears the slice's, and the same from everybody."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from support.node import Node, Worker, left_out, wait_until
from support.programs import CONTEXT

MIB = 1 << 20
QUOTA = 1 << 30

NVML = """
import json, pynvml
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)

def refusal(ask):
    try:
        ask()
    except pynvml.NVMLError as error:
        return str(error)

def utilisation():
    try:
        return {row.pid: row.smUtil for row in pynvml.nvmlDeviceGetProcessUtilization(device, 0)}
    except pynvml.NVMLError_NotFound:
        return {}

one, two = pynvml.nvmlDeviceGetMemoryInfo(device), pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
print(json.dumps({
    "count": pynvml.nvmlDeviceGetCount(),
    "index": pynvml.nvmlDeviceGetIndex(device),
    "second": refusal(lambda: pynvml.nvmlDeviceGetHandleByIndex(1)),
    "uuid": pynvml.nvmlDeviceGetUUID(device),
    "memory": [[one.total, one.used, one.free], [two.total, two.used, two.free]],
    "processes": {row.pid: row.usedGpuMemory for row in pynvml.nvmlDeviceGetComputeRunningProcesses(device)},
    "graphics": len(pynvml.nvmlDeviceGetGraphicsRunningProcesses(device)),
    "gpu": pynvml.nvmlDeviceGetUtilizationRates(device).gpu,
    "utilisation": utilisation(),
}))
"""


def nvml(node: Node, tenant: dict[str, Any], prefix: list[str] | None = None) -> dict[str, Any]:
    process = node.spawn(tenant, sys.executable, "-c", NVML, prefix=prefix or [])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_everybody_says_the_same_of_memory_and_processes_and_nothing_of_others(node: Node) -> None:
    tenant, other = node.tenant("1G", 50, "mine"), node.tenant("2G", 50, "theirs")
    stranger = Worker(node, other)
    stranger.ask("alloc", bytes=512 * MIB)
    workers = [Worker(node, tenant) for _ in range(2)]
    for worker, size in zip(workers, (100, 200), strict=True):
        assert worker.ask("alloc", bytes=size * MIB) == {"error": "CUDA_SUCCESS"}
    used = node.used("mine")
    seen = nvml(node, tenant)
    info = workers[0].ask("info")
    assert seen["memory"] == [[QUOTA, used, QUOTA - used]] * 2
    assert info == {"free": QUOTA - used, "total": QUOTA, "device_total": QUOTA}
    rows = {row["pid_in_slice"]: row["memory"] for row in node.show("mine")["processes"]}
    assert {int(pid): size for pid, size in seen["processes"].items()} == rows
    assert sorted(rows) == sorted(worker.pid for worker in workers)
    assert sum(rows.values()) == used
    assert seen["graphics"] == 0
    assert all(worker.close() == 0 for worker in (*workers, stranger))
    assert nvml(node, tenant)["processes"] == {}


def test_a_slice_is_the_only_gpu_of_a_node_with_several() -> None:
    node = Node("--emulate", "--emulated-gpus=3", "--emulated-memory=2G", "--NodeApp.allow_shim_tier=False")
    try:
        tenants = [node.tenant("2G", 100, f"t{i}") for i in range(3)]
        for tenant in tenants:
            seen = nvml(node, tenant)
            assert seen["count"] == 1
            assert seen["index"] == 0
            assert seen["uuid"] == tenant["gpu"]["uuid"]
            assert seen["second"] == "Invalid Argument"
        assert len({tenant["gpu"]["uuid"] for tenant in tenants}) == 3
        elsewhere = NVML.replace(
            "nvmlDeviceGetHandleByIndex(0)", f"nvmlDeviceGetHandleByUUID('{tenants[1]['gpu']['uuid']}')", 1
        )
        process = node.spawn(tenants[0], sys.executable, "-c", elsewhere)
        assert "NVMLError_NotFound" in process.communicate(timeout=60)[1]
    finally:
        node.stop()


def test_use_of_compute_is_of_the_slice_and_the_same_as_the_daemons(node: Node) -> None:
    tenant, other = node.tenant("1G", 25, "mine"), node.tenant("1G", 75, "theirs")
    mine, theirs = Worker(node, tenant), Worker(node, other)
    idle = nvml(node, tenant)
    assert idle["gpu"] == 0
    assert idle["utilisation"] == {}
    mine.send("spin", seconds=8)
    theirs.send("spin", seconds=8)
    time.sleep(3)
    wait_until(lambda: node.show("mine")["usage"]["cores"] > 5, 5, "the daemon sees the kernels")
    seen, cores = nvml(node, tenant), node.show("mine")["usage"]["cores"]
    # a quarter of the card is all of the slice
    assert 10 < cores < 40
    assert seen["gpu"] > 40
    assert list(seen["utilisation"]) == [str(mine.pid)]
    mine.answer(), theirs.answer()
    assert mine.close() == theirs.close() == 0
    wait_until(lambda: nvml(node, tenant)["gpu"] == 0, 10, "idle again")


def test_processes_have_the_numbers_of_their_own_container(node: Node) -> None:
    if os.geteuid() != 0:
        left_out("only root may make a pid namespace")
    tenant = node.tenant("1G", 50, "mine")
    code = f"""
import json, os, subprocess, sys
{CONTEXT}
assert not driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t({64 * MIB}))
print(json.dumps([os.getpid(), json.loads(subprocess.run([sys.executable, "-c", {NVML!r}], capture_output=True).stdout)]))
"""
    process = node.spawn(tenant, sys.executable, "-c", code, prefix=["unshare", "--pid", "--fork", "--mount-proc"])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    pid, seen = json.loads(out)
    assert pid < 100
    assert list(seen["processes"]) == [str(pid)]


def test_a_process_at_work_is_told_from_an_idle_one(node: Node) -> None:
    tenant = node.tenant("1G", 100, "mine")
    working, idle = Worker(node, tenant), Worker(node, tenant)
    idle.ask("kernel", milliseconds=1)

    def rows() -> dict[int, dict[str, Any]]:
        return {row["pid"]: row for row in node.show("mine")["processes"]}

    wait_until(lambda: rows()[idle.pid]["busy"], 3, "its one kernel is seen")
    wait_until(lambda: not rows()[idle.pid]["busy"], 10, "idle after its one kernel")
    rested = rows()[idle.pid]["last_active"]
    for _ in range(4):  # now and then a short one: busy all the time, as a person sees it
        assert working.ask("kernel", milliseconds=1) == {"error": "CUDA_SUCCESS"}
        time.sleep(1)
        wait_until(lambda: rows()[working.pid]["busy"], 2, "busy")
    assert not rows()[idle.pid]["busy"]
    assert rows()[idle.pid]["last_active"] == rested
    working.send("kernel", milliseconds=50, blocks=120)  # one long one hands in nothing new
    time.sleep(4)
    assert rows()[working.pid]["busy"]
    assert working.answer() == {"error": "CUDA_SUCCESS"}
    ended = time.time()
    wait_until(lambda: not rows()[working.pid]["busy"], 10, "idle at the end")
    assert abs(rows()[working.pid]["last_active"] - ended) < 8
    assert working.close() == idle.close() == 0
