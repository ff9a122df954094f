"""The guard on the emulated GPU: limits that hold, and faults that nobody notices."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.node import Node, Worker, wait_until

MIB = 1 << 20
GIB = 1 << 30
CONTEXT = 64 * MIB


def test_the_slice_is_what_a_program_sees_and_can_have(node: Node) -> None:
    worker = Worker(node, node.tenant("1G", 50))
    info = worker.ask("info")
    assert info == {"free": GIB - CONTEXT, "total": GIB, "device_total": GIB}
    filled = worker.ask("fill", bytes=32 * MIB)
    assert filled == {"error": "CUDA_ERROR_OUT_OF_MEMORY", "blocks": (GIB - CONTEXT) // (32 * MIB)}
    view = node.show("tenant")
    assert view["usage"]["memory"] == GIB
    assert view["tier"] == "guard"
    assert view["refusals"]["last"] | {"time": 0} == {"bytes": 32 * MIB, "free": 0, "pid": worker.pid, "time": 0}
    worker.ask("free")
    assert node.used("tenant") == CONTEXT
    assert worker.close() == 0
    wait_until(lambda: node.used("tenant") == 0, 2, "an exit gives everything back")


def test_the_quota_is_the_tenants_over_all_its_processes(node: Node) -> None:
    tenant = node.tenant("1G", 50)
    workers = [Worker(node, tenant) for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        taken = list(pool.map(lambda worker: worker.ask("fill", bytes=4 * MIB), workers))
    assert sum(answer["blocks"] for answer in taken) == (GIB - 4 * CONTEXT) // (4 * MIB)
    assert node.used("tenant") == GIB
    assert workers[0].ask("info")["free"] == workers[3].ask("info")["free"] == 0
    rows = {row["pid"]: row["memory"] for row in node.show("tenant")["processes"]}
    assert rows == {
        worker.pid: CONTEXT + answer["blocks"] * 4 * MIB for worker, answer in zip(workers, taken, strict=True)
    }
    for worker in workers:
        worker.kill()
    wait_until(lambda: node.used("tenant") == 0, 2, "kill -9 gives everything back")


def test_neighbours_do_not_touch_each_other(node: Node) -> None:
    first, second = Worker(node, node.tenant("1G", 50, "first")), Worker(node, node.tenant("2G", 50, "second"))
    first.ask("fill", bytes=16 * MIB)
    assert second.ask("info")["free"] == 2 * GIB - CONTEXT
    assert second.ask("alloc", bytes=GIB) == {"error": "CUDA_SUCCESS"}
    assert {row["pid"] for row in node.show("second")["processes"]} == {second.pid}
    first.close()
    second.close()


def test_a_child_process_and_one_without_the_environment_are_held_too(node: Node) -> None:
    tenant = node.tenant("1G", 50)
    script = str(Path(__file__).parents[1] / "support" / "worker.py")
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    kept = {key: tenant["launch"]["environment"][key] for key in ("VGPU_EMULATED_DIR",)}
    native = Path(tenant["launch"]["native"])
    inner = ["env", "-i", *(f"{key}={value}" for key, value in (environment | kept).items())]
    inner += [f"LD_LIBRARY_PATH={native}/emulator", sys.executable, script]
    process = node.spawn(tenant, *inner, stdin=subprocess.PIPE)
    out, err = process.communicate('{"op": "fill", "bytes": 33554432}\n{"op": "info"}\n', timeout=60)
    lines = out.splitlines()
    assert '"blocks": 30' in lines[1], err
    # without the shim it sees the whole card, and still can't have it
    assert '"total": 8589934592' in lines[2]


@pytest.mark.parametrize("policy", ["hard", "burst"])
def test_a_quarter_of_the_compute(node: Node, policy: str) -> None:
    tenant = node.tenant("1G", 25, policy=policy)
    worker = Worker(node, tenant)
    worker.ask("spin", seconds=0.5)
    share = worker.ask("spin", seconds=3)["done"] * 0.005 / 3
    if policy == "hard":
        assert 0.17 < share < 0.30
    else:
        assert share > 0.75  # nobody else is there
    worker.close()


def test_two_tenants_share_by_their_percent_and_a_resize_is_felt_at_once(node: Node) -> None:
    small, large = node.tenant("1G", 20, "small"), node.tenant("1G", 60, "large")
    workers = [Worker(node, small), Worker(node, large)]
    for worker in workers:
        worker.ask("spin", seconds=0.3)

    def shares() -> list[float]:
        for worker in workers:
            worker.send("spin", seconds=2)
        return [worker.answer()["done"] * 0.005 / 2 for worker in workers]

    before = shares()
    assert before[0] < before[1]
    assert 0.10 < before[0] < 0.27
    node.client.request("PATCH", "/api/tenants/large", {"cores": 10})
    node.client.request("PATCH", "/api/tenants/small", {"cores": 70})
    after = shares()
    assert after[0] > 2 * after[1]
    for worker in workers:
        worker.close()


def test_shrinking_below_use_refuses_new_memory_and_kills_nothing(node: Node) -> None:
    worker = Worker(node, node.tenant("1G", 50))
    worker.ask("alloc", bytes=512 * MIB)
    view = node.client.request("PATCH", "/api/tenants/tenant", {"memory": "256M"})
    assert view["usage"]["memory_over_by"] == CONTEXT + 512 * MIB - 256 * MIB
    assert worker.ask("alloc", bytes=2 * MIB) == {"error": "CUDA_ERROR_OUT_OF_MEMORY"}
    assert worker.ask("info") == {"free": 0, "total": 256 * MIB, "device_total": 256 * MIB}
    node.client.request("PATCH", "/api/tenants/tenant", {"memory": "2G"})
    assert worker.ask("alloc", bytes=GIB) == {"error": "CUDA_SUCCESS"}
    worker.close()


def test_a_killed_guard_makes_tenants_wait_not_fail(node: Node) -> None:
    tenant = node.tenant("512M", 50)
    churner, holder = Worker(node, tenant), Worker(node, tenant)
    holder.ask("alloc", bytes=128 * MIB)
    churner.send("churn", seconds=6)
    for _ in range(20):
        old = node.kill_guard()
        wait_until(lambda old=old: node.guard_pid() != old, 5, "another guard")
        time.sleep(0.05)
    answer = churner.answer()
    assert answer["rounds"] > 1000
    assert node.used("tenant") == 2 * CONTEXT + 128 * MIB
    assert churner.ask("alloc", bytes=384 * MIB) == {"error": "CUDA_ERROR_OUT_OF_MEMORY"}
    # and nobody is left switched off
    assert churner.ask("spin", seconds=0.5)["done"] > 5
    churner.close()
    holder.close()
    wait_until(lambda: node.used("tenant") == 0, 2, "the ledger is empty")


def test_a_guard_killed_while_it_switches_leaves_nobody_off(node: Node) -> None:
    worker = Worker(node, node.tenant("1G", 30))
    worker.send("spin", seconds=5)
    for _ in range(25):
        node.kill_guard()
        time.sleep(0.15)
    assert worker.answer()["done"] > 100
    worker.close()


def test_a_restarted_daemon_has_tenants_quotas_and_ledger_as_before(node: Node) -> None:
    tenant = node.tenant("1G", 25, policy="burst")
    worker = Worker(node, tenant)
    worker.ask("alloc", bytes=256 * MIB)
    before, guard = node.show("tenant"), node.guard_pid()
    node.kill()
    assert worker.ask("alloc", bytes=64 * MIB) == {"error": "CUDA_SUCCESS"}  # the guard goes on alone
    node.start()
    after = node.show("tenant")
    assert node.guard_pid() == guard
    assert after["quota"] == before["quota"]
    assert after["id"] == before["id"]
    assert after["usage"]["memory"] == CONTEXT + 320 * MIB
    assert worker.ask("fill", bytes=64 * MIB)["error"] == "CUDA_ERROR_OUT_OF_MEMORY"
    worker.ask("free")
    assert Worker(node, tenant).close() == 0  # the join socket is back too
    node.kill_guard()  # the listeners came back with the guard's help
    assert worker.ask("info")["total"] == GIB
    worker.close()


@contextlib.contextmanager
def no_guard(node: Node) -> Iterator[None]:
    """Nor does another come up."""
    guard = node.guard_pid()
    assert node.process
    os.kill(node.process.pid, signal.SIGSTOP)
    with (node.run_dir / "ledger").open("rb") as ledger:
        os.kill(guard, signal.SIGKILL)
        fcntl.flock(ledger, fcntl.LOCK_EX)  # which another guard would want
        os.kill(node.process.pid, signal.SIGCONT)
        wait_until(lambda: node.log.read_text().count("the guard does not come up") > 2, 20, "some tries")
        yield


def test_a_guard_that_does_not_come_up_is_waited_for_by_programs_and_newcomers(node: Node) -> None:
    tenant = node.tenant("1G", 50)
    worker = Worker(node, tenant)
    with no_guard(node):
        newcomer = node.spawn(tenant, "echo", "in")
        worker.send("alloc", bytes=64 * MIB)
        node.client.request("PATCH", "/api/tenants/tenant", {"memory": "512M"})
        with pytest.raises(subprocess.TimeoutExpired):
            newcomer.wait(1)
    out, err = newcomer.communicate(timeout=20)
    assert (out, newcomer.returncode) == ("in\n", 0), err
    assert worker.answer() == {"error": "CUDA_SUCCESS"}
    assert node.used("tenant") == CONTEXT + 64 * MIB
    assert worker.ask("info")["total"] == 512 * MIB
    worker.close()


def test_a_slice_removed_while_there_is_no_guard_leaves_nothing_to_the_next(node: Node) -> None:
    worker = Worker(node, node.tenant("1G", 50, "old"))
    worker.ask("alloc", bytes=256 * MIB)
    with no_guard(node):
        node.client.request("DELETE", "/api/tenants/old")
        node.tenant("1G", 50, "new")
    assert worker.process.wait(20) == -signal.SIGKILL
    wait_until(lambda: node.used("new") == 0, 5, "nothing of the other's")
    other = Worker(node, node.tenant("1G", 50, "third"))
    assert other.ask("info")["free"] == GIB - CONTEXT
    other.close()


def test_a_guard_of_other_gpus_is_not_taken_over() -> None:
    node = Node("--emulate", "--emulated-memory=4G", "--emulated-gpus=1")
    try:
        worker = Worker(node, node.tenant("1G", 50))
        node.kill()
        node.arguments[-1] = "--emulated-gpus=2"
        with pytest.raises(AssertionError, match=r"other GPUs \(\S*gpu0\) than .*gpu1\).*stop the GPU servers"):
            node.start()
        assert worker.ask("alloc", bytes=64 * MIB) == {"error": "CUDA_SUCCESS"}  # it goes on
        node.arguments[-1] = "--emulated-gpus=1"
        node.start()
        assert node.used("tenant") == CONTEXT + 64 * MIB
        worker.close()
        node.kill()
        node.arguments[-1] = "--emulated-gpus=2"
        node.start()  # nobody is guarded any more, so there is no need to wait for that guard's end
        assert len(node.client.request("GET", "/api/gpus")["gpus"]) == 2
    finally:
        node.stop()


def test_a_slice_whose_gpu_has_gone_lets_nobody_in_and_holds_up_no_other() -> None:
    node = Node("--emulate", "--emulated-memory=4G", "--emulated-gpus=2")
    try:
        gone, stays = node.tenant("1G", 50, "gone", gpu="1"), node.tenant("1G", 50, "stays", gpu="0")
        guard = node.guard_pid()
        node.kill()
        os.kill(guard, signal.SIGKILL)
        node.arguments[-1] = "--emulated-gpus=1"
        node.start()
        said = node.spawn(gone, "true").communicate(timeout=20)[1]
        assert "is not shared by this node any more: stop the server and start it anew" in said
        worker = Worker(node, stays)
        node.kill_guard()
        assert worker.ask("alloc", bytes=64 * MIB) == {"error": "CUDA_SUCCESS"}
        assert node.client.request("GET", "/api/health")["guard"]["restarts"] == 1
        worker.close()
    finally:
        node.stop()


def test_both_killed_at_once_fails_closed(node: Node) -> None:
    worker = Worker(node, node.tenant("1G", 25))
    guard = node.guard_pid()
    node.kill()
    os.kill(guard, signal.SIGKILL)
    answer = worker.ask("alloc", bytes=64 * MIB)
    assert answer["error"] != "CUDA_SUCCESS"
    worker.kill()
    node.start()
    wait_until(lambda: node.used("tenant") == 0, 2, "the dead process holds nothing")


def test_processes_killed_at_random_points_leave_nothing(node: Node) -> None:
    tenant = node.tenant("1G", 100)
    for round_number in range(12):
        workers = [Worker(node, tenant) for _ in range(2)]
        for worker in workers:
            worker.send("churn", seconds=5)
        time.sleep(0.02 + 0.013 * round_number)
        for worker in workers:
            worker.kill()
    wait_until(lambda: node.used("tenant") == 0, 1, "the ledger is zero within a second")
    assert node.show("tenant")["processes"] == []


def test_removing_a_tenant_ends_what_still_uses_the_gpu_in_it(node: Node) -> None:
    """Else its memory would be nobody's, and be promised to the next."""
    tenant = node.tenant("1G", 25)
    worker, bystander = Worker(node, tenant), node.spawn(tenant, "sh", "-c", "echo up; exec sleep 5")
    assert bystander.stdout
    assert bystander.stdout.readline() == "up\n"
    node.client.request("DELETE", "/api/tenants/tenant")
    assert worker.process.wait(5) == -signal.SIGKILL
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_launcher_without_a_daemon_does_not_start_the_program(node: Node) -> None:
    tenant = node.tenant()
    node.client.request("DELETE", f"/api/tenants/{tenant['id']}")
    process = node.spawn(tenant, "true")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 125
    assert "is the node daemon (jupyter vgpu node) running?" in err


def test_as_many_launchers_as_there_may_be_make_room_when_they_end(node: Node) -> None:
    tenant = node.tenant()
    running = [node.spawn(tenant, "sh", "-c", "echo in; exec sleep 60") for _ in range(64)]
    for each in running:
        assert each.stdout
        assert each.stdout.readline() == "in\n"
    _, err = node.spawn(tenant, "true").communicate(timeout=20)
    assert "this slice has 64 launchers running, the most that it may" in err
    for each in running:
        each.kill()
        each.communicate()
    assert node.spawn(tenant, "true").wait(20) == 0


def test_a_slice_inside_a_slice_is_refused_in_words(node: Node) -> None:
    tenant = node.tenant()
    launcher = str(Path(tenant["launch"]["native"]) / "bin" / "vgpu-run")
    process = node.spawn(tenant, launcher, "--", "true")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 125
    assert "is in a GPU slice already" in err


def test_what_was_refused_while_no_daemon_looked_is_told_by_the_next_and_no_work_of_before(node: Node) -> None:
    worker = Worker(node, node.tenant("1G", 50))
    worker.ask("spin", seconds=1)
    node.kill()
    assert worker.ask("alloc", bytes=2 * GIB)["error"] == "CUDA_ERROR_OUT_OF_MEMORY"
    node.start()
    (told,) = node.show("tenant")["refusals"]["recent"]
    assert (told["bytes"], told["process"]["pid"], told["times"]) == (2 * GIB, worker.pid, 1)
    end = time.monotonic() + 2.5  # some looks
    while time.monotonic() < end:
        assert node.show("tenant")["usage"]["cores"] == 0
        time.sleep(0.1)
    assert len(node.show("tenant")["refusals"]["recent"]) == 1
    worker.close()
