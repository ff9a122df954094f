"""On a real NVIDIA GPU: slices that share it by MPS, held by the shim in memory and by MPS in compute."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.gpu import nvml_process_bytes
from support.node import Node, Worker, left_out, wait_until
from support.programs import CONTEXT

from jupyter_vgpu.client import DaemonError

pytestmark = pytest.mark.gpu

MIB, GIB = 1 << 20, 1 << 30
STEPS = "20000"  # a kernel of a millisecond

# How much of the GPU a program sees: multiprocessors.
PARTS = (
    CONTEXT
    + """
count = ctypes.c_int()
assert not driver.cuCtxGetDevice(ctypes.byref(device := ctypes.c_int()))
assert not driver.cuDeviceGetAttribute(ctypes.byref(count), 16, device)
print(count.value)
"""
)

# What Docker gives a slice under MPS: mounts, processes, network and name of its own, the host's IPC, the GPU's device
# nodes alone, and the service's directory elsewhere; and what a notebook image does: no root, no new privileges.
CONTAINER = """
set -e
pipes=$1; shift
mount -t tmpfs tmpfs /run
mkdir -p /run/vgpu/mps /run/dev/shm
mount --bind "$pipes" /run/vgpu/mps
mount -t tmpfs tmpfs "$pipes"
mount --bind /dev/shm /run/dev/shm
while [ "$1" != -- ]; do
  : > "/run$1"; mount --bind "$1" "/run$1"; shift
done
shift
mount --rbind /run/dev /dev
exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs --bounding-set=-all,+dac_read_search \
  --inh-caps=+dac_read_search --ambient-caps=+dac_read_search "$@"
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    if not shutil.which("nvidia-cuda-mps-control"):
        left_out("there is no nvidia-cuda-mps-control")
    made = Node("--NodeApp.mps_gpus=['0']")
    yield made
    made.stop()


@pytest.fixture
def four(shared: Node) -> Iterator[list[dict[str, Any]]]:
    made = [shared.tenant("4G", 25, name, model="MPS") for name in "abcd"]
    yield made
    for tenant in made:
        shared.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def control_pid(node: Node) -> int:
    return int((node.run_dir / "mps" / "nvidia-cuda-mps-control.pid").read_text())


def container(tenant: dict[str, Any]) -> dict[str, Any]:
    """How to spawn a program as in a container of its own, which may read this checkout and its interpreter."""
    devices = [*tenant["launch"]["devices"], "/dev/null", "/dev/zero", "/dev/urandom"]
    apart = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--net", "--uts"]
    script = ["sh", "-c", CONTAINER, "sh", tenant["launch"]["mps"], *devices, "--"]
    return {"prefix": [*apart, *script], "env": {"CUDA_MPS_PIPE_DIRECTORY": "/run/vgpu/mps", "HOME": "/tmp"}}


def rates(node: Node, tenants: list[dict[str, Any]], load: Path, how: Any = None, **environment: str) -> list[float]:
    """Kernels a second of a quarter of the GPU each, all at the same time; once NVML has told of them."""
    argv = [str(load), "run", STEPS, "6"]
    started = []
    for tenant in tenants:
        more = how(tenant) if how else {}
        env = more.pop("env", {}) | {"LOAD_BLOCKS": "32", **environment}
        started.append(node.spawn(tenant, *argv, stdin=subprocess.PIPE, env=env, **more))
    for each in started:
        assert each.stdout
        assert each.stdout.readline().strip() == "ready"
    for each in started:
        assert each.stdin
        each.stdin.write("\n")
        each.stdin.flush()
    found = [json.loads(each.communicate(timeout=60)[0])["windows"][-6:-1] for each in started]
    return [sum(kernels for _, kernels in last) / sum(seconds for seconds, _ in last) for last in found]


def test_only_who_asks_for_it_is_there(shared: Node, four: list[dict[str, Any]]) -> None:
    with pytest.raises(DaemonError, match="GPU 0 is for slices that ask for them: give the model 'MPS'"):
        shared.tenant("1G", 10, "e", gpu="0")
    assert four[0]["gpu"]["mps"]
    assert shared.client.request("GET", "/api/gpus")["gpus"][0]["labels"] == ["MPS"]


def test_memory_is_the_tenants_over_its_processes_as_nvml_says(shared: Node, four: list[dict[str, Any]]) -> None:
    one, two, other = (Worker(shared, tenant) for tenant in (four[0], four[0], four[1]))
    assert one.ask("alloc", bytes=2 * GIB)["error"] == "CUDA_SUCCESS"
    assert two.ask("alloc", bytes=1 * GIB)["error"] == "CUDA_SUCCESS"
    assert two.ask("alloc", bytes=1 * GIB)["error"] == "CUDA_ERROR_OUT_OF_MEMORY"
    assert other.ask("alloc", bytes=3 * GIB)["error"] == "CUDA_SUCCESS"
    view = shared.show("a")
    assert view["tier"] == "shim"
    assert view["refusals"]["count"] >= 1  # the driver tries again
    by_nvml = nvml_process_bytes()
    held = sum(by_nvml[worker.pid] for worker in (one, two))
    assert abs(view["usage"]["memory"] - held) <= max(held // 100, 32 * MIB)
    assert held <= 4 * GIB
    for worker in (one, two, other):
        worker.close()
    wait_until(lambda: shared.used("a") == 0, 10, "all of it is given back")


def test_each_has_its_part_of_the_gpu_at_the_same_time(shared: Node, four: list[dict[str, Any]], load: Path) -> None:
    seen, err = shared.spawn(four[0], sys.executable, "-c", PARTS).communicate(timeout=60)
    natively = subprocess.run([sys.executable, "-c", PARTS], capture_output=True, text=True, check=True).stdout
    assert abs(int(seen or 0) - int(natively) / 4) <= 2, err
    (alone,) = rates(shared, four[:1], load)
    together = rates(shared, four, load)
    print(alone, together)
    assert sum(together) > 2 * alone  # in turns it would be one time
    assert min(together) > 0.75 * max(together)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make namespaces as Docker does")


@needs_root
def test_containers_share_the_gpu_as_programs_of_the_host_do(
    shared: Node, four: list[dict[str, Any]], load: Path
) -> None:
    (alone,) = rates(shared, four[:1], load, container)
    together = rates(shared, four, load, container)
    print(alone, together)
    assert sum(together) > 2 * alone
    assert min(together) > 0.75 * max(together)


@needs_root
def test_a_containers_memory_is_held_and_its_end_is_no_ones_but_its_own(
    shared: Node, four: list[dict[str, Any]]
) -> None:
    one, other = (Worker(shared, tenant, **container(tenant)) for tenant in four[:2])
    assert one.ask("alloc", bytes=3 * GIB)["error"] == "CUDA_SUCCESS"
    assert one.ask("alloc", bytes=1 * GIB)["error"] == "CUDA_ERROR_OUT_OF_MEMORY"
    held = shared.used("a")
    (init,) = psutil.Process(one.pid).children()
    assert abs(held - nvml_process_bytes()[init.pid]) <= max(held // 100, 32 * MIB)
    assert other.ask("alloc", bytes=1 * GIB)["error"] == "CUDA_SUCCESS"
    init.kill()  # as Docker ends a container
    wait_until(lambda: shared.used("a") == 0, 10, "all of it is given back")
    assert other.ask("alloc", bytes=1 * GIB)["error"] == "CUDA_SUCCESS"
    assert other.ask("kernel", milliseconds=1)["error"] == "CUDA_SUCCESS"
    assert other.close() == 0


def test_several_programs_of_a_slice_have_no_more_than_one(
    shared: Node, four: list[dict[str, Any]], load: Path
) -> None:
    (alone,) = rates(shared, four[:1], load)
    together = rates(shared, [four[0]] * 3, load)
    print(alone, together)
    assert sum(together) < 1.3 * alone


def test_who_leaves_mps_out_is_paced(shared: Node, four: list[dict[str, Any]], load: Path) -> None:
    nowhere = {"CUDA_MPS_PIPE_DIRECTORY": "/nonexistent"}
    (free,) = rates(shared, four[:1], load)
    paced = rates(shared, four[:1], load, **nowhere)[0]
    print(free, paced)
    assert paced < 0.4 * free  # a quarter of the time


def test_memory_follows_a_change_and_compute_stays(shared: Node, four: list[dict[str, Any]]) -> None:
    worker = Worker(shared, four[0])
    assert worker.ask("alloc", bytes=1 * GIB)["error"] == "CUDA_SUCCESS"
    with pytest.raises(DaemonError, match="under MPS, where compute is fixed when a server starts"):
        shared.client.request("PATCH", "/api/tenants/a", {"cores": 10})
    shared.client.request("PATCH", "/api/tenants/a", {"memory": "2G"})
    assert worker.ask("alloc", bytes=1 * GIB)["error"] == "CUDA_ERROR_OUT_OF_MEMORY"
    worker.close()


def test_the_service_outlives_the_daemon_and_is_started_again(shared: Node, four: list[dict[str, Any]]) -> None:
    worker = Worker(shared, four[0])
    pid = control_pid(shared)
    shared.kill()
    shared.start()
    assert control_pid(shared) == pid
    assert worker.ask("alloc", bytes=1 * GIB)["error"] == "CUDA_SUCCESS"  # it went on
    worker.close()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: control_pid(shared) != pid, 30, "another is started")

    def works() -> bool:
        done = shared.spawn(four[0], sys.executable, "-c", PARTS)
        return done.wait(60) == 0

    wait_until(works, 60, "and programs run under it")
