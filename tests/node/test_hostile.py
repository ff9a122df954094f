"""What a tenant may try against the guard, and what its neighbours notice of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.node import Node, Worker, left_out, wait_until

MIB = 1 << 20
GIB = 1 << 30
HOSTILE = Path(__file__).parents[1] / "support" / "hostile.py"


@pytest.fixture
def start(node: Node) -> Any:
    started: list[subprocess.Popen[str]] = []

    def run(tenant: dict[str, Any], *argv: object) -> dict[str, Any]:
        process = node.spawn(tenant, sys.executable, str(HOSTILE), *map(str, argv), stdin=subprocess.PIPE)
        started.append(process)
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        answer: dict[str, Any] = json.loads(line)
        return {**answer, "process": process}

    yield run
    for process in started:
        process.kill()
        process.wait()


Start = Callable[..., dict[str, Any]]


def test_arguments_that_never_come_stall_nobody_else(node: Node, start: Start) -> None:
    hostile, neighbour = node.tenant("1G", 50, "hostile"), node.tenant("1G", 50, "neighbour")
    worker = Worker(node, neighbour)
    answer = start(hostile, "stall")
    if "error" in answer:
        left_out(f"{answer['error']}")
    churned = worker.ask("churn", seconds=2)
    assert churned["worst"] < 1
    assert churned["rounds"] > 100
    # its slice can be taken away all the same
    node.client.request("DELETE", f"/api/tenants/{hostile['id']}")
    again = node.tenant("1G", 50, "hostile")
    assert Worker(node, again).ask("fill", bytes=32 * MIB)["blocks"] == 30
    assert worker.close() == 0


def test_a_flood_of_calls_is_felt_by_its_maker(node: Node, start: Start) -> None:
    hostile, neighbour = node.tenant("1G", 50, "hostile"), node.tenant("1G", 50, "neighbour")
    worker = Worker(node, neighbour)
    quiet = worker.ask("churn", seconds=2)["rounds"]
    for _ in range(3):
        start(hostile, "flood")
    flooded = worker.ask("churn", seconds=2)
    assert flooded["rounds"] > quiet / 20  # twelve threads against one, on as few as two cores
    assert flooded["worst"] < 2
    assert worker.close() == 0


def test_a_child_that_keeps_a_client_keeps_its_charge(node: Node, start: Start) -> None:
    tenant = node.tenant("1G", 50)
    holder = start(tenant, "keep", 512)
    wait_until(lambda: holder["process"].poll() is not None, 5, "the maker ended")
    time.sleep(0.3)
    assert node.used("tenant") == 512 * MIB
    assert Worker(node, tenant).ask("fill", bytes=32 * MIB)["blocks"] == 14  # what is left, less the context
    holder["process"].stdin.close()
    wait_until(lambda: node.used("tenant") == 512 * MIB, 2, "the child's end gives it back")


def test_garbage_leaves_the_guard_and_the_neighbour_well(node: Node, start: Start) -> None:
    hostile, neighbour = node.tenant("1G", 50, "hostile"), node.tenant("1G", 50, "neighbour")
    worker, guard = Worker(node, neighbour), node.guard_pid()
    answer = start(hostile, "garbage", 3)
    assert answer["calls"] > 1000
    assert answer["after"] in (0, 0x19)  # the number may be taken by what the garbage made
    assert worker.ask("fill", bytes=32 * MIB)["blocks"] == 30
    assert node.guard_pid() == guard
    answer["process"].wait(5)
    wait_until(lambda: node.used("hostile") == 0, 1, "all is given back")


def test_memory_that_the_ledger_does_not_know_ends_its_holders(node: Node, start: Start) -> None:
    hostile, neighbour = node.tenant("1G", 50, "hostile"), node.tenant("1G", 50, "neighbour")
    worker, other = Worker(node, neighbour), Worker(node, hostile)
    worker.ask("alloc", bytes=256 * MIB)
    process = start(hostile, "forge", 2048)["process"]
    assert process.wait(10) == -signal.SIGKILL
    assert other.process.wait(5) == -signal.SIGKILL  # the file may be anybody's of the tenant's
    wait_until(lambda: node.used("hostile") == 0, 2, "nothing is held")
    assert "memory that it was not given" in node.log.read_text()
    assert worker.ask("info")["free"] == GIB - 256 * MIB - 64 * MIB
    assert Worker(node, hostile).ask("alloc", bytes=64 * MIB) == {"error": "CUDA_SUCCESS"}


def test_threads_and_processes_are_made_as_ever_but_not_by_clone3(node: Node) -> None:
    """The guard hears of processes that share descriptors; libraries find their way without clone3."""
    tenant = node.tenant("1G", 50, "sharer")
    code = """
import ctypes, errno, json, os, platform, signal, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
CLONE, CLONE3 = {"x86_64": 56, "aarch64": 220}[platform.machine()], 435
CLONE_FS, CLONE_FILES = 0x200, 0x400
def clone(flags):
    pid = libc.syscall(CLONE, flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0: os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid > 0 else errno.errorcode[ctypes.get_errno()]
def new():
    return libc.syscall(CLONE3, 0, 0), errno.errorcode[ctypes.get_errno()]
done = []
thread = threading.Thread(target=done.append, args=(1,)); thread.start(); thread.join()
print(json.dumps([clone(CLONE_FILES), clone(CLONE_FILES | CLONE_FS), clone(CLONE_FS), clone(0), new(), done,
                  subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout]))
"""
    process = node.spawn(tenant, sys.executable, "-c", code)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out) == [7, 7, 7, 7, [-1, "ENOSYS"], [1], "hello\n"]


def test_sixteen_processes_racing_never_pass_the_quota(node: Node) -> None:
    tenant = node.tenant("3G", 50)
    workers = [Worker(node, tenant) for _ in range(16)]
    for worker in workers:
        worker.send("fill", bytes=4 * MIB)
    blocks = sum(worker.answer()["blocks"] for worker in workers)
    usage = node.show("tenant")["usage"]
    contexts = 16 * 64 * MIB
    assert blocks * 4 * MIB + contexts == usage["memory"] == 3 * GIB
    assert usage["memory_peak"] == 3 * GIB
    for worker in workers:
        worker.kill()
    wait_until(lambda: node.used("tenant") == 0, 1, "all is given back at once")
