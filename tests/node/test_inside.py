"""What a program in a slice can ask: the Python API, the magics and `jupyter vgpu top`."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import pytest
from support.node import CLI, Node, wait_until
from support.programs import CONTEXT

from jupyter_vgpu.hours import LABEL, Balance, End

MIB = 1 << 20
GPU = (
    CONTEXT
    + """
def take(mib):
    address = ctypes.c_uint64()
    if driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(mib << 20)):
        raise RuntimeError("CUDA error: out of memory")
    return address
"""
)
SHELL = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "jupyter_vgpu")
"""


LAUNCH = """
import threading
module, function = ctypes.c_void_p(), ctypes.c_void_p()
ptx = b".version 7.0\\n.target sm_80\\n.address_size 64\\n.visible .entry nothing() { ret; }\\0"
assert not driver.cuModuleLoadData(ctypes.byref(module), ptx)
assert not driver.cuModuleGetFunction(ctypes.byref(function), module, b"nothing")
def launch(blocks):
    driver.cuCtxSetCurrent(context)
    return driver.cuLaunchKernel(function, blocks, 1, 1, 1, 1, 1, 0, None, None, None)
"""


@pytest.fixture
def tenant(node: Node) -> dict[str, Any]:
    return node.tenant("1G", 25)


def python(node: Node, tenant: dict[str, Any], code: str) -> tuple[str, str]:
    """Output and errors of a program in the slice."""
    process = node.spawn(tenant, sys.executable, "-c", code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out, err


def test_a_program_knows_its_quota_and_what_it_holds(node: Node, tenant: dict[str, Any]) -> None:
    code = GPU + (
        "take(100)\nimport json, os, jupyter_vgpu\n"
        "now, quota = jupyter_vgpu.usage(), jupyter_vgpu.quota()\n"
        "print(json.dumps([quota.memory, quota.cores, now.memory, now.free, now.mine, now.tier, str(now),"
        " [each.pid == os.getpid() for each in now.processes], 'this one' in now._repr_html_()]))"
    )
    out, _ = python(node, tenant, code)
    assert json.loads(out) == [
        *(1 << 30, 25, 164 * MIB, 860 * MIB, 164 * MIB, "guard"),
        *("Emulated vGPU device 0: 164 MiB of 1 GiB of memory, 0 % of 25 % of compute", [True], True),
    ]


def test_without_a_slice_it_says_what_to_do() -> None:
    code = (
        "import jupyter_vgpu\ntry:\n    jupyter_vgpu.usage()\nexcept jupyter_vgpu.NoSlice as error:\n    print(error)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "VGPU_SLICE_DIR"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout
    assert "choose one when you start your server" in out


def test_the_import_is_light(node: Node, tenant: dict[str, Any]) -> None:
    heavy = ("torch", "numpy", "IPython", "jupyter_server", "tornado", "rich")
    out, _ = python(node, tenant, f"import sys, jupyter_vgpu; print([m for m in {heavy} if m in sys.modules])")
    assert out == "[]\n"


def test_a_cell_is_measured_though_it_gives_back_what_it_took(node: Node, tenant: dict[str, Any]) -> None:
    cell = GPU + "held = take(300)\nimport time; time.sleep(0.5)\ndriver.cuMemFree_v2(held)\nprint('done')"
    out, _ = python(node, tenant, SHELL + f"shell.run_cell_magic('vgpu', '', {cell!r})")
    done, told = out.strip().splitlines()
    assert done == "done"
    assert "memory at most 364 MiB of 1 GiB (64 MiB now, 0 B before)" in told
    assert "the GPU for" in told


@pytest.mark.parametrize("tier", ["guard", "shim"])
def test_a_cells_launches_are_counted(tier: str) -> None:
    node = Node("--emulate", "--emulated-memory=8G", *(["--NodeApp.force_shim_tier=True"] if tier == "shim" else []))
    try:
        cell = (
            "for _ in range(7):\n    assert not launch(1)\n"
            "threads = [threading.Thread(target=launch, args=(1,)) for _ in range(5)]\n"
            "for thread in threads:\n    thread.start()\nfor thread in threads:\n    thread.join()\n"
            "assert launch(0)"  # an empty grid is refused, and is no launch
        )
        code = SHELL + f"shell.run_cell({GPU + LAUNCH!r})\nshell.run_cell_magic('vgpu', '', {cell!r})"
        out, err = python(node, node.tenant("1G", 25), code)
        assert out.strip().endswith("; 12 launches"), out + err
    finally:
        node.stop()


def test_a_cell_that_fails_is_measured_and_fails(node: Node, tenant: dict[str, Any]) -> None:
    code = SHELL + (
        "failed = shell.run_cell('%%vgpu\\n1 / 0')\n"
        "print('tells', failed.success, type(failed.error_in_exec.__cause__).__name__)\n"
        "print('tells', shell.run_cell('%%vgpu\\n1 + 1').success)"
    )
    out, _ = python(node, tenant, code)
    assert out.count("ZeroDivisionError") == 3  # head and foot of one traceback, and what this test says
    assert out.count("memory at most") == 2
    assert [line for line in out.splitlines() if line.startswith("tells")] == [
        "tells False ZeroDivisionError",
        "tells True",
    ]


def test_a_cell_runs_though_nobody_can_measure_it(node: Node, tenant: dict[str, Any]) -> None:
    environment = {**os.environ, "VGPU_SLICE_DIR": tenant["launch"]["directory"]}
    node.kill()
    code = SHELL + "shell.run_cell_magic('vgpu', '', 'print(6 * 7)')\nshell.run_line_magic('vgpu', '')"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    node.start()
    assert result.stdout == "42\n"
    assert "does not answer" in result.stderr
    assert "the cell runs all the same" in result.stderr


def test_a_traceback_of_too_little_memory_has_a_note_and_others_have_none(node: Node, tenant: dict[str, Any]) -> None:
    other = node.spawn(tenant, sys.executable, "-c", GPU + "take(200)\nprint('held', flush=True)\ninput()", stdin=-1)
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    code = (
        SHELL + f"shell.run_cell({GPU + 'take(900)'!r})\nshell.run_cell('1 / 0')\nshell.run_cell('raise MemoryError()')"
    )
    _, err = python(node, tenant, code)
    other.communicate("\n", timeout=10)
    note = "GPU slice: 696 MiB of 1 GiB is free. This kernel holds 64 MiB, others of yours 264 MiB"
    assert err.count("GPU slice:") == 1
    assert note in err


def _as_by_a_shell() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever ran before in this process may have ignored it


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *argv: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": "140", "LINES": "50", "TERM": "xterm", **environment}
        self.process = subprocess.Popen(
            argv, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=_as_by_a_shell
        )
        os.close(theirs)
        self._seen = ""

    def wait_for(self, words: str, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while words not in self._seen:
            left = end - time.monotonic()
            assert left > 0, f"no {words!r} in {self._seen[-2000:]}"
            if select.select([self._ours], [], [], left)[0]:
                self._seen += os.read(self._ours, 1 << 16).decode(errors="replace")
        self._seen = ""

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        end = time.monotonic() + 10
        while self.process.poll() is None and time.monotonic() < end:  # who writes to a full terminal waits
            if select.select([self._ours], [], [], 0.1)[0]:
                with suppress(OSError):  # its other side is closed
                    os.read(self._ours, 1 << 16)
        return self.process.wait(1)


def test_top_shows_all_slices_live_and_lives_through_a_restart(node: Node, tenant: dict[str, Any]) -> None:
    top = Terminal(*CLI, "top", "--interval", "0.2", "--run-dir", str(node.run_dir))
    top.wait_for("tenant")
    node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"memory": "768M"})
    top.wait_for("768 MiB")
    node.kill()
    top.wait_for("trying again")
    node.start()
    top.wait_for("768 MiB")
    assert top.interrupt() == 0


def test_top_in_a_slice_shows_that_slice_alone(node: Node, tenant: dict[str, Any]) -> None:
    node.tenant("1G", 25, "somebody-else")
    top = Terminal(*CLI, "top", VGPU_SLICE_DIR=tenant["launch"]["directory"])
    top.wait_for("Slices")
    with pytest.raises(AssertionError):
        top.wait_for("somebody-else", 2)
    assert top.interrupt() == 0


def test_top_as_json_is_a_line_each_time_for_scripts(node: Node, tenant: dict[str, Any]) -> None:
    command = [*CLI, "top", "--json", "--interval", "0.2", "--run-dir", str(node.run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout

    def line() -> dict[str, Any]:
        assert process.stdout
        said: dict[str, Any] = json.loads(process.stdout.readline())
        return said

    assert line()["tenants"][0]["id"] == tenant["id"]
    node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"memory": "768M"})
    wait_until(lambda: line()["tenants"][0]["quota"]["memory"] == 768 << 20, 5)
    node.kill()
    assert "does not answer" in wait_until(lambda: line().get("error"), 5)
    node.start()
    wait_until(lambda: "tenants" in line(), 5)
    process.stdout.close()  # such as by `head`
    assert (process.wait(10), process.stderr.read() if process.stderr else "") == (0, "")
    inside = {**os.environ, "VGPU_SLICE_DIR": tenant["launch"]["directory"]}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=inside)
    assert line()["id"] == tenant["id"]
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def test_top_wants_a_terminal_and_a_sensible_interval(node: Node) -> None:
    piped = subprocess.run([*CLI, "top", "--run-dir", str(node.run_dir)], capture_output=True, text=True)
    assert (piped.returncode, "status --json" in piped.stderr) == (2, True)
    often = subprocess.run([*CLI, "top", "--interval", "0"], capture_output=True, text=True)
    assert (often.returncode, "give seconds from 0.2 to 60" in often.stderr) == (2, True)


def test_status_in_a_slice_tells_of_hours_and_maintenance(node: Node) -> None:
    tenant = node.tenant(labels={LABEL: Balance(12.5, 20).as_label([0.8], End.REFUSE)})
    node.client.request("PUT", "/api/maintenance", {"message": "Restart at 18:00"})
    process = node.spawn(tenant, *CLI, "status")
    out, err = process.communicate(timeout=60)
    assert "12.5 of 20 GPU-hours" in out, err
    assert "maintenance: Restart at 18:00" in out
