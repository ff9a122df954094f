"""Tier `shim`: the tenant's processes count together, exactly; who goes round them is noticed and charged."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.node import Node, Worker, wait_until
from support.programs import CONTEXT, FORK_STORM, build

from jupyter_vgpu.native import layout, native_dir

MIB, GIB = 1 << 20, 1 << 30
CONTEXT_BYTES = 64 * MIB
REFUSED = {"error": "CUDA_ERROR_OUT_OF_MEMORY"}
DONE = {"error": "CUDA_SUCCESS"}


@pytest.fixture
def tenant(shim_node: Node) -> Iterator[dict[str, Any]]:
    made = shim_node.tenant("1G", 50)
    yield made
    shim_node.client.request("DELETE", f"/api/tenants/{made['id']}")


@pytest.fixture(scope="module")
def evade(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = Path(__file__).parents[1] / "shim" / "evade.c"
    return str(build(tmp_path_factory.mktemp("evade") / "evade", source))


def test_racing_processes_never_have_more_than_the_quota_and_nearly_all_of_it(
    shim_node: Node, tenant: dict[str, Any]
) -> None:
    workers = [Worker(shim_node, tenant) for _ in range(6)]
    for worker in workers:
        worker.send("fill", bytes=2 * MIB)
    most, ready = 0, []
    while len(ready) < len(workers):
        most = max(most, shim_node.used("tenant"))
        ready = select.select([worker.process.stdout for worker in workers], [], [], 0)[0]
    answers = [worker.answer() for worker in workers]
    assert {answer["error"] for answer in answers} == {"CUDA_ERROR_OUT_OF_MEMORY"}
    got = sum(answer["blocks"] for answer in answers) * 2 * MIB
    assert GIB - 6 * CONTEXT_BYTES - 6 * 2 * MIB <= got <= GIB - 6 * CONTEXT_BYTES
    assert most <= GIB
    assert shim_node.used("tenant") == got + 6 * CONTEXT_BYTES
    assert workers[0].ask("info")["free"] == GIB - got - 6 * CONTEXT_BYTES
    for worker in workers:
        assert worker.close() == 0
    wait_until(lambda: shim_node.used("tenant") == 0, 2, "nothing on the account")


def test_what_a_context_held_comes_back_with_it(shim_node: Node, tenant: dict[str, Any]) -> None:
    worker = Worker(shim_node, tenant)
    worker.ask("alloc", bytes=100 * MIB)
    assert worker.ask("managed", bytes=50 * MIB) == DONE
    assert shim_node.show("tenant")["usage"]["memory_managed"] == 50 * MIB
    worker.ask("reset")
    wait_until(lambda: shim_node.used("tenant") <= CONTEXT_BYTES, 2, "the reset context's memory is back")
    assert worker.close() == 0


def test_managed_memory_may_overflow_as_far_as_the_admin_allows(shim_node: Node, tenant: dict[str, Any]) -> None:
    worker = Worker(shim_node, tenant)
    assert worker.ask("managed", bytes=1536 * MIB) == DONE
    assert worker.ask("managed", bytes=512 * MIB) == REFUSED  # with the context above twice the quota
    assert worker.ask("alloc", bytes=448 * MIB) == DONE
    assert worker.ask("alloc", bytes=2 * MIB) == REFUSED
    last = wait_until(lambda: shim_node.show("tenant")["refusals"]["recent"], 5, "the refusal is recorded")
    assert (last[0]["bytes"], last[0]["process"]["pid"]) == (512 * MIB, worker.pid)
    assert worker.close() == 0


def test_kill_9_at_any_moment_leaves_nothing_on_the_account(
    shim_node: Node, tenant: dict[str, Any], evade: str
) -> None:
    seed = random.Random(4)
    for _ in range(250):
        processes = [shim_node.spawn(tenant, evade, "plain", stdin=subprocess.PIPE) for _ in range(4)]
        time.sleep(seed.uniform(0, 0.03))
        for process in processes:
            process.kill()
            process.communicate()
        assert shim_node.used("tenant") <= GIB
    wait_until(lambda: shim_node.used("tenant") == 0, 2, "nothing on the account")
    assert Worker(shim_node, tenant).ask("fill", bytes=64 * MIB)["blocks"] == 15


def test_a_daemon_that_is_killed_finds_who_holds_what(shim_node: Node, tenant: dict[str, Any]) -> None:
    stays, goes = Worker(shim_node, tenant), Worker(shim_node, tenant)
    for worker in (stays, goes):
        assert worker.ask("alloc", bytes=256 * MIB) == DONE
    shim_node.kill()
    assert stays.ask("alloc", bytes=128 * MIB) == DONE  # nobody is asked
    assert stays.ask("alloc", bytes=512 * MIB) == REFUSED
    goes.kill()
    shim_node.start()
    wait_until(lambda: shim_node.used("tenant") == 384 * MIB + CONTEXT_BYTES, 2, "the one that lives, alone")
    assert shim_node.show("tenant")["tier"] == "shim"
    assert stays.ask("alloc", bytes=512 * MIB) == DONE
    stays.kill()
    wait_until(lambda: shim_node.used("tenant") == 0, 2, "its end is noticed by the new daemon")


def waits_for_the_emulated_card(pid: int) -> bool:
    """Is it in a futex that lies in the card's own file?"""
    call = Path(f"/proc/{pid}/syscall").read_text().split()
    where = int(call[1], 16) if len(call) > 1 else 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        first, last = (int(edge, 16) for edge in line.split()[0].split("-"))
        if first <= where < last:
            return "/emulated/gpu" in line
    return False


def test_a_stopped_process_stops_nobody_else(shim_node: Node, tenant: dict[str, Any]) -> None:
    stopped, other = Worker(shim_node, tenant), Worker(shim_node, tenant)
    stopped.send("churn", seconds=30)
    time.sleep(0.3)
    os.kill(stopped.pid, signal.SIGSTOP)
    other.send("churn", seconds=0.5)
    while other.process.stdout not in select.select([other.process.stdout], [], [], 5)[0]:
        # what an emulated card locks a real driver locks in the kernel, where nobody is stopped
        assert waits_for_the_emulated_card(other.pid), "the stopped process keeps the other waiting"
        os.kill(stopped.pid, signal.SIGCONT)
        other.answer()
        time.sleep(0.01)
        os.kill(stopped.pid, signal.SIGSTOP)
        other.send("churn", seconds=0.5)
    assert other.answer()["rounds"] > 10
    assert other.ask("fill", bytes=32 * MIB)["blocks"] >= 26
    os.kill(stopped.pid, signal.SIGCONT)
    stopped.kill()
    assert other.close() == 0


def test_a_program_that_becomes_another_gives_back_what_it_held(
    shim_node: Node, tenant: dict[str, Any], evade: str
) -> None:
    process = shim_node.spawn(tenant, evade, "exec", stdin=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    assert shim_node.used("tenant") == GIB
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    wait_until(lambda: shim_node.used("tenant") == 0, 10, "nothing on the account")
    process.kill()
    process.communicate()


def test_a_program_that_closes_what_it_did_not_open_stays_counted(shim_node: Node, tenant: dict[str, Any]) -> None:
    code = (
        CONTEXT
        + f"""
import os, sys, time
assert not driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t({256 * MIB}))
for fd in range(500, 600):
    try: os.close(fd)
    except OSError: pass
time.sleep(6)  # the daemon has given up on it meanwhile
assert not driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t({128 * MIB}))
print("done", flush=True)
sys.stdin.readline()
"""
    )
    process = shim_node.spawn(tenant, "python3", "-c", code, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "done\n", process.communicate()[1]
    assert shim_node.used("tenant") == 384 * MIB + CONTEXT_BYTES
    process.communicate("\n", timeout=20)
    wait_until(lambda: shim_node.used("tenant") == 0, 2, "nothing on the account")


@pytest.mark.parametrize("way", ["unset", "deepbind", "namespace"])
def test_who_goes_round_the_shim_is_charged_and_above_the_quota_ended(
    shim_node: Node, tenant: dict[str, Any], evade: str, way: str
) -> None:
    prefix = ["env", "-u", "LD_PRELOAD"] if way == "unset" else []
    process = shim_node.spawn(tenant, *prefix, evade, way, stdin=subprocess.PIPE)
    assert process.stdout
    got = int(process.stdout.readline().split()[0])
    assert got > 2 * GIB  # nothing held it
    wait_until(lambda: shim_node.used("tenant") > 2 * GIB or process.poll() is not None, 2, "it is noticed")
    assert process.wait(5) == -signal.SIGKILL
    process.communicate()
    wait_until(lambda: shim_node.used("tenant") == 0, 3, "nothing on the account")
    assert f"ended process {process.pid}" in shim_node.log.read_text()


def test_within_the_quota_it_is_charged_and_shown_and_goes_on(shim_node: Node, tenant: dict[str, Any]) -> None:
    held = Worker(shim_node, tenant)
    code = (
        CONTEXT
        + f"""
import sys
assert not driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t({512 * MIB}))
print("done", flush=True)
sys.stdin.readline()
"""
    )
    outside = shim_node.spawn(tenant, "env", "-u", "LD_PRELOAD", "python3", "-c", code, stdin=subprocess.PIPE)
    assert outside.stdout
    assert outside.stdout.readline() == "done\n"
    wait_until(lambda: shim_node.show("tenant")["outside"] == [outside.pid], 2, "it is named")
    assert held.ask("info")["free"] == GIB - 512 * MIB - 2 * CONTEXT_BYTES
    assert held.ask("alloc", bytes=512 * MIB) == REFUSED
    assert outside.poll() is None
    outside.communicate("\n", timeout=20)
    wait_until(lambda: held.ask("alloc", bytes=512 * MIB) == DONE, 4, "its memory is the tenant's again")
    assert held.close() == 0


TAKE = (
    CONTEXT
    + """
import sys
assert not driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(int(sys.argv[1])))
sys.stdin.readline()
"""
)
SCRIBBLE = (
    CONTEXT
    + """
import os, socket, sys, time
assert not driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(int(sys.argv[1])))
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.connect(os.environ["VGPU_SLICE_DIR"] + "/join.sock")
peer.send(b"account")
answer, (account,), _, _ = socket.recv_fds(peer, 64, 1)
size = os.fstat(account).st_size
print("done", flush=True)
while True:
    if sys.argv[2] == "cut":
        os.ftruncate(account, 0)
        os.ftruncate(account, size)
    else:
        os.pwrite(account, bytes(16), int(sys.argv[3]) + int(sys.argv[4]) * int(answer.split()[1]))
    time.sleep(0.001)
"""
)


@pytest.mark.parametrize("deed", ["zero", "cut"])
def test_who_says_that_it_holds_nothing_is_found_out(shim_node: Node, tenant: dict[str, Any], deed: str) -> None:
    """The account's descriptor is a tenant's to write to; NVML is not."""
    first = layout()["account_rows_offset"] + layout()["account_row"]["device"][0]
    size = layout()["account_row_size"]
    liar = shim_node.spawn(tenant, "python3", "-c", SCRIBBLE, str(800 * MIB), deed, str(first), str(size))
    assert liar.stdout
    assert liar.stdout.readline() == "done\n", liar.communicate()[1]
    # who maps a file that is cut short may die of it; it is the tenant's own, and nobody else's
    honest = Worker(shim_node, tenant) if deed == "zero" else None
    if honest:
        assert honest.ask("alloc", bytes=800 * MIB) == DONE
    else:
        driver = [sys.executable, "-c", TAKE, str(3 << 30)]
        greedy = shim_node.spawn(tenant, "env", "-u", "LD_PRELOAD", *driver, stdin=subprocess.PIPE)
        assert greedy.wait(6) == -signal.SIGKILL  # the daemon goes on looking
        greedy.communicate()
        liar.kill()
    assert liar.wait(6) == -signal.SIGKILL
    liar.communicate()
    if honest:
        assert honest.ask("free") == DONE
        assert honest.close() == 0
    wait_until(lambda: shim_node.used("tenant") == 0, 3, "nothing on the account")
    assert Worker(shim_node, tenant).ask("fill", bytes=64 * MIB)["blocks"] == 15


def test_what_was_taken_before_asking_for_an_account_counts(shim_node: Node, tenant: dict[str, Any]) -> None:
    """Only a dead process' memory under the same number is not the newcomer's."""
    first, size = layout()["account_rows_offset"], layout()["account_row_size"]
    without = ["env", "-u", "LD_PRELOAD", "python3", "-c", SCRIBBLE]
    liar = shim_node.spawn(tenant, *without, str(3 * GIB), "zero", str(first), str(size))
    assert liar.wait(6) == -signal.SIGKILL, liar.communicate()
    liar.communicate()


def test_a_storm_of_forks_leaves_the_account_right(shim_node: Node, tenant: dict[str, Any]) -> None:
    process = shim_node.spawn(tenant, "python3", "-c", FORK_STORM, str(2 * MIB), "0", stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "done\n", process.communicate()[1]
    wait_until(lambda: shim_node.used("tenant") == CONTEXT_BYTES + 2 * MIB, 5, "the parent's own alone")
    process.communicate("\n", timeout=30)
    wait_until(lambda: shim_node.used("tenant") == 0, 5, "nothing on the account")


def kernels(worker: Worker, seconds: float = 2) -> float:
    """5 ms kernels in a second, one after the other."""
    return float(worker.ask("spin", seconds=seconds)["done"]) / seconds


def test_compute_is_held_to_the_percent_and_follows_changes(shim_node: Node, tenant: dict[str, Any]) -> None:
    def resize(cores: int, policy: str = "hard") -> None:
        shim_node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"cores": cores, "policy": policy})

    worker = Worker(shim_node, tenant)
    resize(100)
    kernels(worker, 0.5)
    whole = kernels(worker)
    for percent in (25, 75):
        resize(percent)
        assert kernels(worker) == pytest.approx(whole * percent / 100, rel=0.2)
    resize(25, "burst")  # nobody else is at work
    assert kernels(worker) > 0.8 * whole
    assert worker.close() == 0


def test_several_processes_share_the_tenants_percent(shim_node: Node, tenant: dict[str, Any]) -> None:
    workers = [Worker(shim_node, tenant) for _ in range(3)]  # of a tenant with 50 percent
    shim_node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"cores": 100})
    whole = kernels(workers[0], 1)
    shim_node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"cores": 50})
    for worker in workers:
        worker.ask("spin", seconds=0.3)
        worker.send("spin", seconds=2)
    # the emulated GPU runs processes side by side: each is on it in half the time, or less where they don't overlap,
    # and with a budget of its own each would have half whatever the others do
    done = [worker.answer()["done"] / 2 for worker in workers]
    assert sum(done) < 1.3 * whole
    assert sum(done) > 0.3 * whole
    assert all(worker.close() == 0 for worker in workers)


def test_a_tenant_without_a_limit_gets_no_thread(shim_node: Node, tenant: dict[str, Any]) -> None:
    def threads(worker: Worker) -> set[str]:
        return {(task / "comm").read_text().strip() for task in Path(f"/proc/{worker.pid}/task").iterdir()}

    shim_node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"cores": 100})
    worker = Worker(shim_node, tenant)
    kernels(worker, 0.2)
    assert "vgpu-pace" not in threads(worker)
    shim_node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"cores": 50})
    kernels(worker, 0.2)
    assert "vgpu-pace" in threads(worker)
    assert worker.ask("reset") == DONE  # its streams and events go
    assert worker.close() == 0


@pytest.mark.parametrize("stream", ["default", "own"])
def test_a_queue_of_kernels_goes_on(shim_node: Node, tenant: dict[str, Any], stream: str) -> None:
    worker = Worker(shim_node, tenant)
    for milliseconds, count in ((8, 12), (1, 60), (8, 6)):
        took = worker.ask("queue", milliseconds=milliseconds, count=count, stream=stream)["seconds"]
        assert took < 3  # a launch that nobody looked after would wait for five
    assert worker.close() == 0


FORGE = """
import fcntl, os, socket, sys
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.connect(os.environ["VGPU_SLICE_DIR"] + "/join.sock")
peer.send(b"account")
_, (account,), _, _ = socket.recv_fds(peer, 64, 1)
at, size, number, device = map(int, sys.argv[1:5])
for place, pid in enumerate([int(sys.argv[5]), 0xFFFFFFFF, 1], 5):
    os.pwrite(account, pid.to_bytes(4, "little"), at + place * size + number)
    os.pwrite(account, b"\\xff" * 16, at + place * size + device)
os.posix_fallocate(account, 0, 64 << 20)
fcntl.fcntl(account, fcntl.F_SETFL, os.O_APPEND)
peer.send(b"full 99999999999999999999")
print(peer.recv(200).decode(), flush=True)
sys.stdin.readline()
"""


def test_nonsense_in_an_account_hurts_neither_daemon_nor_neighbours(shim_node: Node, tenant: dict[str, Any]) -> None:
    """A hostile tenant writes what it likes into its account: numbers of strangers, sizes of nothing."""
    neighbour = shim_node.tenant("1G", 10, "neighbour")
    stranger = subprocess.Popen(["sleep", "600"])
    fields = layout()["account_row"]
    numbers = layout()["account_rows_offset"], layout()["account_row_size"], fields["pid"][0], fields["device"][0]
    arguments = [str(number) for number in (*numbers, stranger.pid)]
    hostile = shim_node.spawn(tenant, sys.executable, "-c", FORGE, *arguments, stdin=subprocess.PIPE)
    assert hostile.stdout
    assert hostile.stdout.readline().startswith("refused unknown message")
    assert [row["pid"] for row in shim_node.show("tenant")["processes"]] == [hostile.pid]
    shim_node.kill()
    shim_node.start()
    time.sleep(2.5)  # two looks at who holds what
    assert stranger.poll() is None
    assert [view["name"] for view in shim_node.client.request("GET", "/api/tenants")["tenants"]] == [
        "tenant",
        "neighbour",
    ]
    assert Path(tenant["launch"]["directory"], "account").stat().st_size == layout()["account_size"]
    other = Worker(shim_node, neighbour)
    assert other.ask("alloc", bytes=512 * MIB) == DONE
    assert shim_node.used("neighbour") == 512 * MIB + CONTEXT_BYTES
    stranger.kill()
    stranger.wait()
    hostile.communicate("\n", timeout=20)
    other.kill()
    shim_node.client.request("DELETE", f"/api/tenants/{neighbour['id']}")


def test_a_quota_below_what_is_held_ends_nobody(shim_node: Node, tenant: dict[str, Any]) -> None:
    inside = Worker(shim_node, tenant)
    assert inside.ask("alloc", bytes=256 * MIB) == DONE
    outside = shim_node.spawn(
        tenant, "env", "-u", "LD_PRELOAD", sys.executable, "-c", TAKE, str(400 * MIB), stdin=subprocess.PIPE
    )
    wait_until(lambda: shim_node.show("tenant")["outside"] == [outside.pid], 5, "it is charged")
    shim_node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"memory": "128M"})
    time.sleep(3.5)
    assert outside.poll() is None
    assert inside.ask("alloc", bytes=2 * MIB) == REFUSED
    assert shim_node.show("tenant")["usage"]["memory_over_by"] > 500 * MIB
    outside.communicate("\n", timeout=20)
    assert inside.close() == 0


def test_each_ones_programs_without_the_shim_are_its_own(shim_node: Node, tenant: dict[str, Any]) -> None:
    """One slice entered out of another: the environment says whose, not the ancestor."""
    other = shim_node.tenant("1G", 10, "inner")
    launch = [str(native_dir() / "bin" / "vgpu-run"), "--dir", other["launch"]["directory"], "--"]
    command = [*launch, "env", "-u", "LD_PRELOAD", sys.executable, "-c", TAKE, str(300 * MIB)]
    process = shim_node.spawn(tenant, *command, stdin=subprocess.PIPE)
    wait_until(lambda: shim_node.show("inner")["outside"] == [process.pid], 5, "it is the inner one's")
    assert shim_node.show("tenant")["outside"] == []
    process.communicate("\n", timeout=20)
    shim_node.client.request("DELETE", f"/api/tenants/{other['id']}")


def test_a_removed_slice_takes_its_programs_with_it(shim_node: Node) -> None:
    made = shim_node.tenant("1G", 10, "short")
    worker = Worker(shim_node, made)
    assert worker.ask("alloc", bytes=256 * MIB) == DONE
    shim_node.client.request("DELETE", f"/api/tenants/{made['id']}")
    assert worker.process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("how", ["release", "wait", "leave"])
def test_no_way_of_launching_is_lost_sight_of(shim_node: Node, how: str) -> None:
    made = shim_node.tenant("1G", 20, how)
    worker = Worker(shim_node, made)
    worker.ask("evade", how=how, seconds=0.3)
    answer = worker.ask("evade", how=how, seconds=3)
    assert 10 < answer["done"] / answer["seconds"] < 30  # of a hundred a second
    assert worker.close() == 0
    shim_node.client.request("DELETE", f"/api/tenants/{made['id']}")


def test_a_debt_is_worked_off_while_nobody_looks(shim_node: Node) -> None:
    made = shim_node.tenant("1G", 10, "debt")
    first = Worker(shim_node, made)
    first.ask("kernel", milliseconds=700)  # seven seconds of a tenth
    assert first.close() == 0
    time.sleep(7.5)
    second = Worker(shim_node, made)
    began = time.monotonic()
    assert second.ask("kernel", milliseconds=1) == DONE
    assert time.monotonic() - began < 2
    assert second.close() == 0
    shim_node.client.request("DELETE", f"/api/tenants/{made['id']}")
