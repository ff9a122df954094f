"""Managed memory counts, though the driver's calls tell nothing of it; and what was refused is explained."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import Any

import pytest
from support.node import Node, Worker, wait_until
from support.programs import CONTEXT

MIB = 1 << 20
OK, FULL = {"error": "CUDA_SUCCESS"}, {"error": "CUDA_ERROR_OUT_OF_MEMORY"}


@pytest.fixture
def tenant(node: Node) -> dict[str, Any]:
    return node.tenant("1G", 50)


def usage(node: Node) -> dict[str, int]:
    seen: dict[str, int] = node.show("tenant")["usage"]
    return seen


def test_managed_memory_counts_against_the_quota_and_comes_back(node: Node, tenant: dict[str, Any]) -> None:
    worker, other = Worker(node, tenant), Worker(node, tenant)
    context = usage(node)["memory"]
    assert worker.ask("managed", bytes=300 * MIB) == OK
    assert other.ask("managed", bytes=200 * MIB) == OK
    assert usage(node)["memory"] == context + 500 * MIB
    assert usage(node)["memory_managed"] == 500 * MIB
    left = (1 << 30) - context - 500 * MIB
    assert worker.ask("info")["free"] == left
    assert other.ask("managed", bytes=left + MIB) == FULL
    assert worker.ask("alloc", bytes=left + MIB) == FULL  # device memory and managed memory share the quota
    assert worker.ask("alloc", bytes=left) == OK
    assert worker.ask("free") == OK
    assert usage(node)["memory"] == context + 200 * MIB
    assert other.ask("reset") == OK  # its context goes, and the memory with it
    wait_until(lambda: usage(node)["memory_managed"] == 0, 5, "managed memory of a context that is gone")
    assert worker.close() == other.close() == 0
    assert usage(node)["memory"] == 0


def test_a_killed_process_leaves_no_managed_memory(node: Node, tenant: dict[str, Any]) -> None:
    worker = Worker(node, tenant)
    assert worker.ask("managed", bytes=600 * MIB) == OK
    assert usage(node)["memory_managed"] == 600 * MIB
    worker.kill()
    wait_until(lambda: usage(node)["memory"] == 0, 2, "nothing on the account")
    again = Worker(node, tenant)
    assert again.ask("managed", bytes=600 * MIB) == OK
    assert again.close() == 0


def test_managed_memory_stays_counted_when_guard_and_daemon_are_killed(node: Node, tenant: dict[str, Any]) -> None:
    worker = Worker(node, tenant)
    assert worker.ask("managed", bytes=400 * MIB) == OK
    before = usage(node)
    node.kill_guard()
    assert worker.ask("managed", bytes=100 * MIB) == OK  # waits for the next guard
    assert usage(node)["memory"] == before["memory"] + 100 * MIB
    node.kill()
    worker.send("managed", bytes=50 * MIB)
    time.sleep(0.5)  # nobody answers: it waits
    node.start()
    assert worker.answer() == OK
    assert usage(node)["memory_managed"] == 550 * MIB
    assert worker.ask("managed", bytes=500 * MIB) == FULL
    worker.kill()
    wait_until(lambda: usage(node)["memory"] == 0, 5, "nothing on the account")


def test_managed_memory_may_overflow_as_far_as_the_admin_says() -> None:
    node = Node("--emulate", "--emulated-memory=4G", "--mem-oversubscribe=2", "--NodeApp.allow_shim_tier=False")
    try:
        tenant = node.tenant("1G", 50)
        worker = Worker(node, tenant)
        context = usage(node)["memory"]
        assert worker.ask("managed", bytes=1500 * MIB) == OK
        assert usage(node)["memory_over_by"] == 0
        # the device's own has its quota still, as far as both together have room
        assert worker.ask("info")["free"] == (2 << 30) - context - 1500 * MIB
        assert worker.ask("alloc", bytes=400 * MIB) == OK
        assert worker.ask("managed", bytes=(2 << 30) - context - 1900 * MIB + 1) == FULL
        assert worker.ask("managed", bytes=(2 << 30) - context - 1900 * MIB) == OK
        assert worker.ask("alloc", bytes=MIB) == FULL
        worker.ask("free")
        assert worker.ask("alloc", bytes=(1 << 30) - context + MIB) == FULL
        assert worker.close() == 0
    finally:
        node.stop()


def test_a_forked_child_does_not_touch_its_parents_account(node: Node, tenant: dict[str, Any]) -> None:
    code = f"""
import os
{CONTEXT}
assert not driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t({256 * MIB}), 1)
child = os.fork()
if not child:
    driver.cuMemFree_v2(ctypes.c_uint64(address.value))
    os._exit(0)
os.waitpid(child, 0)
print("forked", flush=True)
input()
"""
    process = node.spawn(tenant, "python3", "-c", code, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "forked\n"
    assert usage(node)["memory_managed"] == 256 * MIB
    process.communicate("\n", timeout=20)
    wait_until(lambda: usage(node)["memory_managed"] == 0, 2, "its end gives it back")


@pytest.mark.parametrize("op", ["alloc", "managed"])
def test_a_refused_allocation_says_who_asked_what_was_free_and_who_holds_the_rest(
    node: Node, tenant: dict[str, Any], op: str
) -> None:
    holder, worker = Worker(node, tenant), Worker(node, tenant)
    holder.ask("alloc", bytes=500 * MIB)
    free = worker.ask("info")["free"]
    assert worker.ask(op, bytes=900 * MIB) == FULL
    (seen,) = wait_until(lambda: node.show("tenant")["refusals"]["recent"], 5, "the refusal is recorded")
    assert seen["call"] == {"alloc": "cuMemAlloc", "managed": "cuMemAllocManaged"}[op]
    assert (seen["bytes"], seen["free"], seen["times"]) == (900 * MIB, free, 1)
    assert abs(seen["time"] - time.time()) < 10
    assert seen["process"]["pid_in_slice"] == worker.pid
    assert [row["pid_in_slice"] for row in seen["holders"]] == [holder.pid, worker.pid]
    assert seen["holders"][0]["memory"] > 500 * MIB
    time.sleep(1.5)  # the daemon's own look does not record it again
    assert len(node.show("tenant")["refusals"]["recent"]) == 1
    assert worker.close() == holder.close() == 0


def test_a_refusal_of_a_program_without_the_shim_is_recorded_too(node: Node, tenant: dict[str, Any]) -> None:
    code = f"""
{CONTEXT}
assert driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(2 << 30)) == 2
print("refused", flush=True)
input()
"""
    process = node.spawn(tenant, "env", "LD_PRELOAD=", "python3", "-c", code, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "refused\n"
    (seen,) = wait_until(lambda: node.show("tenant")["refusals"]["recent"], 5, "the refusal is recorded")
    assert (seen["call"], seen["bytes"], seen["process"]["pid"]) == (None, 2 << 30, process.pid)
    process.communicate("\n", timeout=20)


def test_nonsense_about_managed_memory_is_answered_and_hurts_nobody(node: Node, tenant: dict[str, Any]) -> None:
    other = node.tenant("1G", 50, "other")
    code = """
import os, socket
path = os.environ["VGPU_SLICE_DIR"] + "/join.sock"
def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect(path); s.send(text); return s.recv(256).decode()
print([say(t) for t in (b"managed", b"managed -1", b"managed 99999999999999999999999", b"managed 18446744073709551615",
                        b"managed 1e9", b"refused x", b"refused cuMemAlloc_v2 -3", b"unknown a;b", b"managed 1073741825")])
print(say(b"managed 1048576"), flush=True)
input()
"""
    process = node.spawn(tenant, "python3", "-c", code, stdin=subprocess.PIPE)
    assert process.stdout
    answers = eval(process.stdout.readline())
    full = [False, False, False, False, False, False, False, False, True]  # 20 digits are no number of bytes
    assert [answer == "full" for answer in answers] == full
    assert all(answer.startswith("refused unknown message") for answer in answers[:-1])
    assert process.stdout.readline() == "ok\n"
    assert usage(node)["memory_managed"] == MIB
    assert node.show("other")["usage"]["memory"] == 0
    process.communicate("\n", timeout=20)
    wait_until(lambda: usage(node)["memory"] == 0, 5, "nothing on the account")
    assert Worker(node, other).ask("alloc", bytes=MIB) == OK


def test_freeing_waits_for_nobody_and_is_known_when_the_daemon_is_back(node: Node, tenant: dict[str, Any]) -> None:
    worker = Worker(node, tenant)
    assert worker.ask("managed", bytes=200 * MIB) == OK
    node.kill()
    began = time.monotonic()
    assert worker.ask("free") == OK
    assert time.monotonic() - began < 2
    node.start()
    assert worker.ask("managed", bytes=MIB) == OK
    assert usage(node)["memory_managed"] == MIB
    assert worker.close() == 0


def test_a_process_that_becomes_another_holds_no_managed_memory(node: Node, tenant: dict[str, Any]) -> None:
    code = f"""
import os
{CONTEXT}
assert not driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t({256 * MIB}), 1)
os.execvp("sleep", ["sleep", "30"])
"""
    process = node.spawn(tenant, "python3", "-c", code)
    wait_until(lambda: usage(node)["memory_managed"] == 256 * MIB, 10, "it is counted")
    wait_until(lambda: usage(node)["memory_managed"] == 0, 15, "and given back")
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_signal_while_the_daemon_is_slow_mixes_up_no_answers(node: Node, tenant: dict[str, Any]) -> None:
    code = f"""
import os, signal, threading, time
{CONTEXT}
def managed(size): return driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(size), 1)
assert not managed({MIB})
signal.signal(signal.SIGUSR1, lambda *_: None)
main = threading.main_thread().ident
def knock():
    for _ in range(20):
        time.sleep(0.05); signal.pthread_kill(main, signal.SIGUSR1)
threading.Thread(target=knock).start()
print("asking", flush=True)
first = managed({MIB})
print([first] + [managed({800 * MIB}) for _ in range(4)], flush=True)
input()
"""
    process = node.spawn(tenant, "python3", "-c", code, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "asking\n"
    assert node.process
    node.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    node.process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() in ("[0, 0, 2, 2, 2]\n",)
    assert usage(node)["memory_managed"] == 802 * MIB
    process.communicate("\n", timeout=20)


def test_a_process_that_writes_over_its_environment_or_closes_all_files_stays_in_the_slice(
    node: Node, tenant: dict[str, Any]
) -> None:
    code = f"""
import os, socket
{CONTEXT}
def managed(size): return driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(size), 1)
def total():
    free, all_ = ctypes.c_size_t(), ctypes.c_size_t()
    assert not driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(all_)); return all_.value
assert not managed({MIB})
for fd in range(3, 2000):
    try:
        if os.readlink(f"/proc/self/fd/{{fd}}").startswith("socket"): os.close(fd)
    except OSError: pass
ours, theirs = socket.socketpair()
for fd in range(500, 530):
    os.dup2(ours.fileno(), fd)
theirs.send(b"ok")
refused = managed(1 << 40)
ours.setblocking(False)
print(refused, ours.recv(9), total())
value = os.environ["VGPU_SLICE_DIR"]
libc = ctypes.CDLL(None); libc.getenv.restype = ctypes.c_void_p
ctypes.memset(libc.getenv(b"VGPU_SLICE_DIR"), 0, len(value))
print(managed(2 << 30), managed({MIB}), total(), flush=True)
"""
    process = node.spawn(tenant, "python3", "-c", code)
    out, err = process.communicate(timeout=30)
    assert out.splitlines() == [f"2 b'ok' {1 << 30}", f"2 0 {1 << 30}"], err


def test_a_name_of_any_bytes_blinds_nobody(node: Node, tenant: dict[str, Any]) -> None:
    code = f"""
import ctypes
ctypes.CDLL(None).prctl(15, b"\\xff\\xfe")
{CONTEXT}
assert driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(2 << 30)) == 2
print("refused", flush=True)
input()
"""
    process = node.spawn(tenant, "env", "-u", "LD_PRELOAD", "python3", "-c", code, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "refused\n"
    wait_until(lambda: node.show("tenant")["refusals"]["recent"], 5, "the refusal is recorded")
    assert len(node.client.request("GET", "/api/tenants")["tenants"]) == 1
    worker = Worker(node, tenant)
    time.sleep(0.1)
    assert worker.ask("alloc", bytes=2 << 30) == FULL
    wait_until(lambda: len(node.show("tenant")["refusals"]["recent"]) == 2, 5, "the next one too")
    process.communicate("\n", timeout=20)


def test_who_speaks_for_a_process_that_has_ended_is_not_heard(node: Node, tenant: dict[str, Any]) -> None:
    """Its number may be another tenant's by now."""
    code = """
import os, socket, sys
path = os.environ["VGPU_SLICE_DIR"] + "/join.sock"
def say(s, text):
    try:
        s.send(text); return s.recv(256)
    except OSError as error: return type(error).__name__.encode()
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
child = os.fork()
if not child:
    s.connect(path); print(say(s, b"managed 4096"), flush=True); os._exit(0)
os.waitpid(child, 0)
import time; time.sleep(1)
print(say(s, b"managed 8192"), flush=True)
"""
    process = node.spawn(tenant, "python3", "-c", code)
    out, err = process.communicate(timeout=30)
    assert out.splitlines() == ["b'ok'", "b'BrokenPipeError'"], (out, err)
    assert usage(node)["memory_managed"] == 0
