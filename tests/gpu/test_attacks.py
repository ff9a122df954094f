"""Hostile tenants on the real driver. The witness is NVML and the neighbour's own progress, never our ledger alone."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.gpu import Witness, nvml_used
from support.node import Node, wait_until

pytestmark = pytest.mark.gpu

MIB = 1 << 20
GIB = 1 << 30
# what the driver itself takes for a client: page tables, instance blocks
SLACK = 64 * MIB


def start(node: Node, tenant: dict[str, Any], *argv: object) -> subprocess.Popen[str]:
    return node.spawn(tenant, *map(str, argv), stdin=subprocess.PIPE)


def finish(process: subprocess.Popen[str], seconds: float = 60, log: Path | None = None) -> dict[str, Any]:
    """Its answer. log: the node's, which says why it ended where it gave none."""
    out, err = process.communicate("\n", timeout=seconds)
    assert out, f"ended with {process.returncode}: {err}\n{log.read_text()[-4000:] if log else ''}"
    answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    print(answer)
    return answer


@pytest.fixture
def tenant(gpu_node: Node) -> Any:
    made = gpu_node.tenant("2G", 50, "hostile")
    yield made
    gpu_node.client.request("DELETE", f"/api/tenants/{made['id']}")


@pytest.mark.parametrize("how", ["alloc", "heap", "heap-range", "sysmem"])
def test_a_program_without_libcuda_is_held_to_the_quota(
    gpu_node: Node, tenant: dict[str, Any], attack: Path, how: str
) -> None:
    with Witness() as witness:
        seen = finish(start(gpu_node, tenant, attack, f"fill-{how}"))
    print(how, witness.most / MIB)
    assert witness.most <= 2 * GIB + SLACK
    if how != "sysmem":  # the quota is there to the last block
        assert seen["bytes"] >= 2 * GIB - 32 * MIB
    wait_until(lambda: gpu_node.used("hostile") == 0, 1, "all is given back at exit")


@pytest.mark.parametrize("size", [4096, (1 << 16) + 4096, 2 * MIB + 4096])
def test_small_pieces_count_as_what_the_driver_makes_of_them(
    gpu_node: Node, tenant: dict[str, Any], attack: Path, size: int
) -> None:
    before = nvml_used()
    holder = start(gpu_node, tenant, attack, "pieces", size, 200)
    assert holder.stdout
    made = json.loads(holder.stdout.readline())
    assert gpu_node.used("hostile") == made["bytes"] > 200 * size
    assert abs(nvml_used() - before - made["bytes"]) <= MIB
    holder.communicate("\n", timeout=10)


def test_the_oldest_door_gives_no_video_memory(gpu_node: Node, tenant: dict[str, Any], attack: Path) -> None:
    with Witness() as witness:
        finish(start(gpu_node, tenant, attack, "older-door"))
    assert witness.most < SLACK


@pytest.mark.parametrize(
    "what", ["race-memory", "race-root", "race-client", "race-descriptor", "race-object", "race-swap"]
)
def test_rewriting_arguments_while_they_are_judged_gains_nothing(
    gpu_node: Node, tenant: dict[str, Any], attack: Path, what: str
) -> None:
    with Witness() as witness:
        attackers = [start(gpu_node, tenant, attack, what, 4) for _ in range(4)]
        answers = [finish(attacker, log=gpu_node.log) for attacker in attackers]
    assert sum(answer["calls"] for answer in answers) > 1000  # and none was ended: the account needed no audit
    assert witness.most <= 2 * GIB + 4 * SLACK, witness.most


def test_a_child_that_keeps_the_file_keeps_the_charge(gpu_node: Node, tenant: dict[str, Any], attack: Path) -> None:
    holder = start(gpu_node, tenant, attack, "leave-to-child", 1536)
    assert holder.stdout
    wait_until(lambda: holder.poll() is not None, 10, "the maker ended")
    with Witness() as witness:
        finish(start(gpu_node, tenant, attack, "fill-alloc"))
    assert witness.most <= 512 * MIB + SLACK
    assert gpu_node.used("hostile") >= 1536 * MIB
    assert holder.stdin
    holder.stdin.close()  # now the child ends too
    wait_until(lambda: gpu_node.used("hostile") == 0, 1, "the child's end gives it back")


def test_closed_files_give_their_memory_back_at_once(gpu_node: Node, tenant: dict[str, Any], attack: Path) -> None:
    assert finish(start(gpu_node, tenant, attack, "close-files", 1536))["refused"] == 0


def test_a_second_name_is_no_way_around_the_quota(gpu_node: Node, tenant: dict[str, Any], attack: Path) -> None:
    with Witness() as witness:
        seen = finish(start(gpu_node, tenant, attack, "keep-by-dup", 64))
    assert seen["bytes"] <= 2 * GIB
    assert witness.most <= 2 * GIB + SLACK


def test_nonsense_and_sudden_ends_leave_the_guard_well(gpu_node: Node, tenant: dict[str, Any], attack: Path) -> None:
    guard = gpu_node.guard_pid()
    neighbour = gpu_node.tenant("1G", 50, "neighbour")
    noisy = [start(gpu_node, tenant, attack, "nonsense", 4) for _ in range(3)]
    for _ in range(20):
        start(gpu_node, tenant, attack, "exit-in-calls").wait(10)
    assert finish(start(gpu_node, neighbour, attack, "fill-alloc"))["bytes"] >= GIB - 32 * MIB
    for process in noisy:
        assert finish(process)["after"] == 0
    assert gpu_node.guard_pid() == guard
    wait_until(lambda: gpu_node.used("hostile") == 0, 1, "all is given back")
    gpu_node.client.request("DELETE", f"/api/tenants/{neighbour['id']}")


def channels_of(node: Node, pid: int) -> tuple[str, str]:
    """Client and first channel of a process, from the guard's trace: what a neighbour could guess."""
    found = re.findall(
        rf"pid {pid} client 0x(\w+) escape 0x2b object 0x(\w+) class/command 0x0000c\w6f: alloc", node.log.read_text()
    )
    assert found
    return found[0]


def test_a_neighbour_stays_on_the_gpu_and_keeps_its_memory(
    gpu_node: Node, tenant: dict[str, Any], attack: Path, load: Path
) -> None:
    victim = gpu_node.tenant("2G", 50, "victim")
    running = start(gpu_node, victim, load, "run", 100000, 8, "plain", 256)
    assert running.stdin
    assert running.stdout
    assert running.stdout.readline().strip() == "ready"
    client, channel = channels_of(gpu_node, running.pid)
    running.stdin.write("\n")
    running.stdin.flush()
    time.sleep(2)
    answer = finish(start(gpu_node, tenant, attack, "switch", 3, client, channel))
    assert answer["plain"] != 0
    assert finish(start(gpu_node, tenant, attack, "dup", 0, client, "5c000001"))["made"] == 0
    out, _ = running.communicate(timeout=60)
    rates = [kernels / seconds for seconds, kernels in json.loads(out.strip().splitlines()[-1])["windows"]]
    quiet, attacked = rates[1:4], rates[5:9]
    print("victim's kernels/s before", quiet, "during", attacked)
    assert min(attacked) > 0.8 * min(quiet)
    gpu_node.client.request("DELETE", f"/api/tenants/{victim['id']}")
