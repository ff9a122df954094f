"""Ways past the shim lead to the guard: the quota holds however a program comes to the driver."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.node import Node, Worker, wait_until
from support.programs import FORK_STORM, build

from jupyter_vgpu.native import native_dir

MIB = 1 << 20
OUT_OF_MEMORY = 2


@pytest.fixture(scope="module")
def evade(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("evade") / "evade", Path(__file__).with_name("evade.c")))


@pytest.fixture
def tenant(node: Node) -> dict[str, Any]:
    return node.tenant("1G", 50)


def taken(process: subprocess.Popen[str]) -> tuple[int, int]:
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.communicate(timeout=30)[1]
    got, error = map(int, line.split())
    return got, error


def bare(tenant: dict[str, Any]) -> list[str]:
    """An empty environment but for where the emulated driver is."""
    where = tenant["launch"]["environment"]["VGPU_EMULATED_DIR"]
    return ["env", "-i", f"LD_LIBRARY_PATH={native_dir() / 'emulator'}", f"VGPU_EMULATED_DIR={where}"]


@pytest.mark.parametrize("way", ["plain", "deepbind", "namespace", "unset", "empty"])
def test_the_quota_holds_whichever_way(node: Node, tenant: dict[str, Any], evade: str, way: str) -> None:
    prefix = {"unset": ["env", "-u", "LD_PRELOAD"], "empty": bare(tenant)}.get(way, [])
    process = node.spawn(tenant, *prefix, evade, way, stdin=subprocess.PIPE)
    got, error = taken(process)
    used = node.used("tenant")
    assert error == OUT_OF_MEMORY
    assert got == 960 * MIB  # what fits beside a context, in blocks of 64 MiB
    assert got < used <= 1 << 30
    (refusal,) = wait_until(lambda: node.show("tenant")["refusals"]["recent"], 5, "the refusal is recorded")
    assert (refusal["bytes"], refusal["process"]["pid"]) == (64 * MIB, process.pid)
    process.communicate("\n", timeout=30)
    wait_until(lambda: node.used("tenant") == 0, 5, "nothing on the account")


def test_a_program_that_becomes_another_gives_back_what_it_held(node: Node, tenant: dict[str, Any], evade: str) -> None:
    process = node.spawn(tenant, evade, "exec", stdin=subprocess.PIPE)
    taken(process)
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    wait_until(lambda: node.used("tenant") == 0, 10, "nothing on the account")
    assert process.poll() is None  # it sleeps on, in the same slice
    assert Worker(node, tenant).ask("alloc", bytes=512 * MIB) == {"error": "CUDA_SUCCESS"}
    process.kill()
    process.communicate()


def test_a_stopped_process_keeps_its_memory_and_stops_nobody_else(
    node: Node, tenant: dict[str, Any], evade: str
) -> None:
    stopped, other = Worker(node, tenant), Worker(node, tenant)
    assert stopped.ask("managed", bytes=300 * MIB) == {"error": "CUDA_SUCCESS"}
    os.kill(stopped.pid, signal.SIGSTOP)
    before = node.used("tenant")
    assert other.ask("managed", bytes=100 * MIB) == {"error": "CUDA_SUCCESS"}
    assert other.ask("alloc", bytes=100 * MIB) == {"error": "CUDA_SUCCESS"}
    assert other.ask("free") == {"error": "CUDA_SUCCESS"}
    assert node.used("tenant") == before
    stopped.kill()
    assert other.close() == 0
    wait_until(lambda: node.used("tenant") == 0, 5, "nothing on the account")


def test_a_storm_of_forks_leaves_the_account_right(node: Node, tenant: dict[str, Any]) -> None:
    process = node.spawn(tenant, "python3", "-c", FORK_STORM, "0", str(MIB), stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "done\n", process.communicate()[1]
    wait_until(lambda: node.show("tenant")["usage"]["memory_managed"] == MIB, 5, "the parent's own alone")
    process.communicate("\n", timeout=30)
    wait_until(lambda: node.used("tenant") == 0, 5, "nothing on the account")
