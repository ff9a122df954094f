"""On a real NVIDIA GPU: the shim in the driver's way, NVML and nvidia-smi in a slice, managed memory."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gpu import nvml_process_bytes, nvml_used
from support.node import Node, Worker, left_out, wait_until
from support.programs import CONTEXT, build

pytestmark = pytest.mark.gpu

MIB, GIB = 1 << 20, 1 << 30
SHIM_TESTS = Path(__file__).parents[1] / "shim"

# A process with a context, a device allocation and a managed one, of so many bytes; waits for a line before it ends.
HOLD = (
    CONTEXT
    + """
import json, sys
def alloc(size): return driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)) if size else 0
def managed(size):
    rc = driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(size), 1) if size else 0
    if size and not rc: driver.cuMemsetD8_v2(address, ctypes.c_ubyte(1), ctypes.c_size_t(size)); driver.cuCtxSynchronize()
    return rc
print(json.dumps([alloc(int(sys.argv[1])), managed(int(sys.argv[2]))]), flush=True)
sys.stdin.readline()
"""
)


@pytest.fixture
def tenant(gpu_node: Node) -> Iterator[dict[str, Any]]:
    made = gpu_node.tenant("4G", 50, "mine")
    yield made
    gpu_node.client.request("DELETE", f"/api/tenants/{made['id']}")


def hold(node: Node, tenant: dict[str, Any], device: int, managed: int = 0) -> tuple[subprocess.Popen[str], list[int]]:
    process = node.spawn(tenant, sys.executable, "-c", HOLD, str(device), str(managed), stdin=subprocess.PIPE)
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.communicate(timeout=30)[1]
    results: list[int] = json.loads(line)
    return process, results


def test_every_symbol_comes_back_as_it_does_natively(gpu_node: Node, tenant: dict[str, Any], tmp_path: Path) -> None:
    program = str(build(tmp_path / "symbols", SHIM_TESTS / "symbols.c"))
    native = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    out, err = gpu_node.spawn(tenant, program).communicate(timeout=60)
    assert not err
    sliced = out.splitlines()
    differ = [pair for pair in zip(native, sliced, strict=True) if pair[0] != pair[1]]
    refused = [pair for pair in differ if pair[1].endswith(" refused")]
    print(len(native), "lines,", sum(not line.endswith(" -") for line in native), "found,", len(refused), "refused")
    assert {pair[1].split()[0].removesuffix(":") for pair in refused} <= {
        "cuMemGetHandleForAddressRange",
        "cuMemGetHandleForAddressRange_ptsz",
        "cuMulticastAddDevice",
        "cuMulticastBindAddr",
        "cuMulticastBindAddr_v2",
        "cuMulticastBindMem",
        "cuMulticastBindMem_v2",
        "cuMulticastCreate",
    }
    assert [pair for pair in differ if pair not in refused] == []


def test_nvidia_smi_shows_the_slice(gpu_node: Node, tenant: dict[str, Any]) -> None:
    if not shutil.which("nvidia-smi"):
        left_out("there is no nvidia-smi")
    other = gpu_node.tenant("8G", 50, "theirs")
    neighbour, _ = hold(gpu_node, other, 2 * GIB)
    mine, _ = hold(gpu_node, tenant, GIB)

    def smi(*arguments: str) -> list[list[str]]:
        process = gpu_node.spawn(tenant, "nvidia-smi", *arguments, "--format=csv,noheader,nounits")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        return [[word.strip() for word in line.split(",")] for line in out.splitlines()]

    try:
        used = gpu_node.used("mine")
        (row,) = smi("--query-gpu=count,memory.total,memory.used,memory.free")
        assert row[:2] == ["1", "4096"]
        assert abs(int(row[2]) - used / MIB) < 41
        assert abs(int(row[3]) - (4096 - used / MIB)) < 41
        rows = smi("--query-compute-apps=pid,used_memory")
        assert [int(pid) for pid, _ in rows] == [mine.pid]
        assert abs(int(rows[0][1]) - used / MIB) < 41
        whole = gpu_node.spawn(tenant, "nvidia-smi", "-q").communicate(timeout=60)[0]
        assert str(neighbour.pid) not in whole.split()
        table = gpu_node.spawn(tenant, "nvidia-smi").communicate(timeout=60)[0]
        assert "4096MiB" in table
    finally:
        for process in (mine, neighbour):
            process.communicate("\n", timeout=30)
        gpu_node.client.request("DELETE", f"/api/tenants/{other['id']}")


def test_managed_memory_counts(gpu_node: Node, tenant: dict[str, Any]) -> None:
    before = nvml_used()
    process, results = hold(gpu_node, tenant, GIB, GIB)
    assert results == [0, 0]
    context = gpu_node.used("mine") - 2 * GIB
    assert gpu_node.show("mine")["usage"]["memory_managed"] == GIB
    print(
        "context", context / MIB, "NVML", (nvml_used() - before) / MIB, "of it", nvml_process_bytes().get(process.pid)
    )
    second, results = hold(gpu_node, tenant, 0, GIB)
    assert results == [0, 2]  # what is left is less: two contexts
    for each in (process, second):
        each.communicate("\n", timeout=30)
    wait_until(lambda: gpu_node.used("mine") == 0, 5, "nothing on the account")
    recent = gpu_node.show("mine")["refusals"]["recent"]
    assert [(row["call"], row["bytes"]) for row in recent] == [("cuMemAllocManaged", GIB)]


def test_a_process_at_work_is_told_from_an_idle_one(gpu_node: Node, tenant: dict[str, Any], load: Path) -> None:
    idle, _ = hold(gpu_node, tenant, 64 * MIB)
    busy = gpu_node.spawn(tenant, str(load), "run", "18700", "6", stdin=subprocess.PIPE)
    assert busy.stdout
    assert busy.stdin
    assert busy.stdout.readline().strip() == "ready"
    busy.stdin.write("go\n")
    busy.stdin.flush()

    def is_busy(pid: int) -> bool:
        return any(row["busy"] for row in gpu_node.show("mine")["processes"] if row["pid"] == pid)

    wait_until(lambda: is_busy(busy.pid) and not is_busy(idle.pid), 5, "one busy, one idle")
    busy.communicate(timeout=30)
    idle.communicate("\n", timeout=30)


# One program makes memory and gives it a name, another takes it by that name; each goes on at a line on stdin.
SECOND_NAME = """
import sys
from cuda.bindings import driver
def check(answer):
    assert answer[0] == driver.CUresult.CUDA_SUCCESS, answer[0].name
    return answer[1] if len(answer) > 1 else None
check(driver.cuInit(0))
check(driver.cuCtxSetCurrent(check(driver.cuDevicePrimaryCtxRetain(0))))
if len(sys.argv) == 1:
    memory = check(driver.cuMemAlloc(1 << 30))
    print(bytes(check(driver.cuIpcGetMemHandle(memory)).reserved).hex(), flush=True)
else:
    print("ready", flush=True)
    sys.stdin.readline()
    handle = driver.CUipcMemHandle()
    handle.reserved = bytes.fromhex(sys.argv[1])
    memory = check(driver.cuIpcOpenMemHandle(handle, 1))
    check(driver.cuMemsetD8(memory, 1, 1 << 30))
    check(driver.cuCtxSynchronize())
    print("mapped", flush=True)
sys.stdin.readline()
"""


def test_memory_under_a_second_name_is_counted_with_who_made_it_and_then_found_out() -> None:
    node = Node("--NodeApp.force_shim_tier=True")

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout
        said = process.stdout.readline().strip()
        assert said, process.communicate()[1][-2000:]
        return said

    def go_on(process: subprocess.Popen[str]) -> None:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()

    try:
        tenant = node.tenant("4G", 50)
        owner = node.spawn(tenant, sys.executable, "-c", SECOND_NAME, stdin=subprocess.PIPE)
        handle = line(owner)
        other = node.spawn(tenant, sys.executable, "-c", SECOND_NAME, handle, stdin=subprocess.PIPE)
        assert line(other) == "ready"
        before = node.used("tenant")
        go_on(other)
        assert line(other) == "mapped"
        time.sleep(3)  # some looks at the driver's account
        assert node.used("tenant") == before
        held = {row["pid"]: row["memory"] for row in node.show("tenant")["processes"]}
        assert held[owner.pid] > GIB > held[other.pid]
        # when its maker has ended only the driver knows of it, which is enough to hold the quota
        go_on(owner)
        owner.wait(20)
        assert nvml_process_bytes()[other.pid] > GIB
        third = Worker(node, tenant)
        third.ask("fill", bytes=256 * MIB)
        wait_until(lambda: other.poll() == -signal.SIGKILL, 15, "who holds more than it says is ended")
        assert third.ask("info")["total"] == 4 * GIB  # and nobody else
        assert sum(nvml_process_bytes().values()) < 4 * GIB + 128 * MIB
        third.close()
    finally:
        node.stop()
