"""Parts of a GPU in MIG mode, emulated: each is a GPU of its own, for one slice that asks for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.node import Node, Worker, wait_until

from jupyter_vgpu.client import DaemonError

MIB, GIB = 1 << 20, 1 << 30
PART = {"memory": "1G", "cores": 14, "model": "MIG"}


@pytest.fixture
def node() -> Iterator[Node]:
    """One whole GPU, and one of three parts."""
    made = Node("--emulate", "--emulated-memory=8G", "--emulated-gpus=2", "--emulated-mig=3")
    yield made
    made.stop()


def gpus(node: Node) -> list[dict[str, Any]]:
    return list(node.client.request("GET", "/api/gpus")["gpus"])


def test_each_part_is_a_gpu_for_one_slice_that_asks_for_it(node: Node) -> None:
    listed = gpus(node)
    assert [(gpu["index"], gpu["name"], gpu["labels"]) for gpu in listed] == [
        (0, "Emulated vGPU device 0", []),
        *((index, "Emulated vGPU device 1 MIG 1g.1gb", ["MIG"]) for index in (2, 3, 4)),
    ]
    assert {(gpu["memory"]["total"], gpu["cores"]["total"]) for gpu in listed[1:]} == {(GIB, 14)}
    # who asks for nothing is on a whole one, however little is asked
    assert node.tenant("64M", 1, "anyone")["gpu"]["index"] == 0
    # what is asked for may be less than the part: nobody else gets on
    first = node.tenant(**PART | {"memory": "512M"}, name="first")
    assert (first["gpu"]["index"], first["gpu"]["mig"]) == (2, True)
    taken = gpus(node)[1]
    assert (taken["taken"], taken["memory"]["free"], taken["cores"]["free"]) == (True, 0, 0)
    assert node.tenant(**PART | {"model": "1g.1gb"}, name="second")["gpu"]["index"] == 3
    assert node.tenant(**PART | {"model": "MIG 1g.1gb"}, name="third")["gpu"]["index"] == 4
    with pytest.raises(DaemonError, match="no GPU that is large enough is without slices now"):
        node.tenant(**PART, name="fourth")
    node.client.request("DELETE", "/api/tenants/second")
    assert node.tenant(**PART, name="fourth")["gpu"]["index"] == 3
    # no part is a whole one of its model, and none gives more than it has
    with pytest.raises(DaemonError, match=r"no GPU called '2g\.1gb'"):
        node.tenant(**PART | {"model": "2g.1gb"}, name="fifth")
    for more in ({"memory": "1025M"}, {"cores": 15}):
        with pytest.raises(DaemonError, match="no GPU here is large enough"):
            node.tenant(**PART | more, name="fifth")


def test_in_its_slice_the_part_is_the_gpu(node: Node) -> None:
    whole, part, other = node.tenant("2G", 50, "whole"), *(node.tenant(**PART, name=name) for name in ("part", "other"))
    workers = [Worker(node, tenant) for tenant in (whole, part, other)]
    assert [node.show(name)["tier"] for name in ("whole", "part", "other")] == ["guard", "shim", "shim"]
    assert workers[1].ask("info")["total"] == GIB
    filled = workers[1].ask("fill", bytes=32 * MIB)
    assert filled == {"error": "CUDA_ERROR_OUT_OF_MEMORY", "blocks": 30}  # beside the context of 64 MiB
    # each has its own memory, and the account of each is its own
    assert [node.used(name) for name in ("whole", "part", "other")] == [64 * MIB, GIB, 64 * MIB]
    assert workers[2].ask("fill", bytes=32 * MIB)["blocks"] == 30
    # less than the part is held by the shim, while the server runs
    workers[1].ask("free")
    node.client.request("PATCH", "/api/tenants/part", {"memory": "512M"})
    assert workers[1].ask("fill", bytes=32 * MIB)["blocks"] == 14
    node.client.request("PATCH", "/api/tenants/part", {"memory": "1G"})
    with pytest.raises(DaemonError, match="does not fit on GPU 2"):
        node.client.request("PATCH", "/api/tenants/part", {"memory": "2G"})
    for worker in workers:
        assert worker.close() == 0


TAKE = """
import sys
from cuda.bindings import driver
from cuda.core import Device
Device(0).set_current()
error, block = driver.cuMemAlloc(int(sys.argv[1]))
assert error == driver.CUresult.CUDA_SUCCESS, error
sys.stdin.readline()
"""

LOOK = """
import json, pynvml
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)
memory = pynvml.nvmlDeviceGetMemoryInfo(device)
rows = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
for tells_of_others in (
    lambda: pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device),
    lambda: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, 0),
):
    try:
        tells_of_others()
        raise SystemExit("it is told of the GPU that the part is of")
    except pynvml.NVMLError_NotSupported:
        pass
print(json.dumps([pynvml.nvmlDeviceGetCount(), pynvml.nvmlDeviceGetUUID(device), memory.total, memory.used, len(rows)]))
"""


def test_nvml_in_the_slice_shows_the_part_and_the_slices_own_programs(node: Node) -> None:
    part, other = (node.tenant(**PART, name=name) for name in ("part", "other"))
    workers = [Worker(node, tenant) for tenant in (part, other)]
    out, err = node.spawn(part, sys.executable, "-c", LOOK).communicate(timeout=60)
    assert not err
    assert json.loads(out) == [1, part["gpu"]["uuid"], GIB, 64 * MIB, 1]
    for worker in workers:
        worker.close()


def test_who_goes_round_the_shim_is_charged_by_the_drivers_account_of_the_part(node: Node) -> None:
    part = node.tenant(**PART | {"memory": "512M"}, name="part")

    def takes(size: int) -> subprocess.Popen[str]:
        code = [sys.executable, "-c", TAKE, str(size)]
        return node.spawn(part, "env", "-u", "LD_PRELOAD", *code, stdin=subprocess.PIPE)

    modest = takes(128 * MIB)
    wait_until(lambda: node.used("part") == 192 * MIB, 20, "it is charged")
    assert node.show("part")["outside"] == [modest.pid]
    greedy = takes(640 * MIB)  # the part has it, the slice does not
    wait_until(lambda: greedy.poll() == -signal.SIGKILL, 20, "it is ended")
    assert modest.poll() is None
    modest.communicate("\n", timeout=20)


def test_slices_on_parts_outlive_vgpud_and_guard(node: Node) -> None:
    whole, part = node.tenant("1G", 50, "whole"), node.tenant(**PART, name="part")
    workers = [Worker(node, tenant) for tenant in (whole, part)]
    assert workers[1].ask("alloc", bytes=128 * MIB)["error"] == "CUDA_SUCCESS"
    guard = node.guard_pid()
    node.kill()
    node.start()
    assert (node.guard_pid(), node.used("part"), node.show("part")["tier"]) == (guard, 192 * MIB, "shim")
    node.kill_guard()
    wait_until(lambda: node.guard_pid() != guard, 10, "another guard")
    for worker in workers:
        assert worker.ask("alloc", bytes=64 * MIB)["error"] == "CUDA_SUCCESS"
    assert (node.used("whole"), node.used("part")) == (128 * MIB, 256 * MIB)
    for name in ("second", "third"):
        node.tenant(**PART, name=name)
    with pytest.raises(DaemonError, match="no GPU that is large enough"):
        node.tenant(**PART, name="fourth")


def test_a_node_of_parts_alone_needs_nothing_of_the_guard() -> None:
    node = Node("--emulate", "--emulated-mig=2")
    try:
        worker = Worker(node, node.tenant(**PART, name="part"))
        assert worker.ask("fill", bytes=32 * MIB)["blocks"] == 30
        with pytest.raises(DaemonError, match=r"all GPUs of this node are for slices that ask for them.*'MIG'"):
            node.tenant("64M", 1, "anyone")
        assert worker.close() == 0
    finally:
        node.stop()


def test_a_part_is_named_by_no_label(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jupyter_vgpu.cli.main", "node", "--emulate", "--emulated-mig=1"]
    options = [f"--run-dir={tmp_path}/run", f"--data-dir={tmp_path}/data", "--NodeApp.gpu_labels={'1': ['MIG']}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "as parts of GPUs are called: take another" in done.stderr


def test_compute_is_a_part_of_the_whole_gpu_and_the_shim_measures_it(node: Node) -> None:
    """NVML tells no use of a part, and a kernel that runs on must not count as rest."""
    all_of_it, some = (Worker(node, node.tenant(**PART | {"cores": cores}, name=f"at-{cores}")) for cores in (14, 3))
    done = [worker.ask("spin", seconds=2)["done"] for worker in (all_of_it, some)]
    assert done[1] < 0.6 * done[0]
    all_of_it.send("kernel", milliseconds=8000)
    wait_until(lambda: node.show("at-14")["usage"]["cores"] > 10, 7, "its use is told, as percent of the whole GPU")
    time.sleep(3)
    assert node.show("at-14")["activity"]["busy"]  # nothing was launched for longer than a launch is activity
    all_of_it.answer()
    wait_until(lambda: node.show("at-14")["usage"]["cores"] == 0, 10, "it rests")
    for worker in (all_of_it, some):
        worker.close()


def test_nobody_becomes_guarded_where_no_guard_holds(node: Node) -> None:
    """Else nobody would look after what goes round the shim."""
    part = node.tenant(**PART, name="part")
    code = f"""
import ctypes, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
allow = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
rules = ctypes.create_string_buffer(allow)
program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(rules))
listener = libc.syscall(317, 1, 8, program)
assert listener >= 0, os.strerror(ctypes.get_errno())
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.connect({part["launch"]["directory"]!r} + "/join.sock")
socket.send_fds(peer, [b"join"], [listener])
print(peer.recv(200).decode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("refused no guard holds it: this is a part of a GPU"), done
    worker = Worker(node, part)
    assert node.show("part")["tier"] == "shim"
    worker.close()


def test_parts_are_made_anew_while_servers_run_on_whole_gpus(node: Node) -> None:
    whole, kept, gone = (node.tenant("1G", 50, "whole"), *(node.tenant(**PART, name=name) for name in ("kept", "gone")))
    workers = [Worker(node, tenant) for tenant in (whole, kept)]
    guard = node.guard_pid()
    node.kill()
    node.arguments[-1] = "--emulated-mig=1"
    node.start()
    assert ([gpu["index"] for gpu in gpus(node)], node.guard_pid()) == ([0, 2], guard)
    for worker in workers:
        assert worker.ask("alloc", bytes=64 * MIB)["error"] == "CUDA_SUCCESS"
    assert node.show("gone")["gpu"]["index"] is None
    _, err = node.spawn(gone, "true").communicate(timeout=20)
    assert "is not shared by this node any more: stop the server and start it anew" in err
    node.kill()
    node.arguments[-1] = "--emulated-mig=7"
    node.start()
    assert [gpu["index"] for gpu in gpus(node)] == [0, *range(2, 9)]
    for worker in workers:
        assert worker.ask("alloc", bytes=64 * MIB)["error"] == "CUDA_SUCCESS"
        assert worker.close() == 0
    assert node.show("gone")["gpu"]["index"] is None  # another part has its place, and not its name
