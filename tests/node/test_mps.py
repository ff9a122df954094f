"""The control daemon of MPS, kept alive by vgpud: with a program in its place that speaks as it does and shares nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.node import wait_until

from jupyter_vgpu.node import mps as mps_module
from jupyter_vgpu.node.gpus import Gpu
from jupyter_vgpu.node.mps import Mps, MpsError
from jupyter_vgpu.quotas import Policy, Quota

# With -f it serves until "quit"; without, it hands its input over, or fails where nobody serves.
PROGRAM = """#!/usr/bin/env python3
import os, socket, sys
where = os.environ["CUDA_MPS_PIPE_DIRECTORY"] + "/control"
if "-f" in sys.argv:
    if os.path.exists(os.environ["CUDA_MPS_PIPE_DIRECTORY"] + "/broken"):
        sys.exit("it does not start")
    if os.path.exists(where):
        os.unlink(where)
    with open(where + ".pid", "w") as file:
        file.write(f"{os.getpid()} {os.environ['CUDA_VISIBLE_DEVICES']}")
    server = socket.socket(socket.AF_UNIX)
    server.bind(where)
    server.listen()
    while True:
        connection, _ = server.accept()
        if connection.recv(100) == b"quit\\n":
            os.unlink(where)
            sys.exit(0)
        connection.sendall(b"ok")
client = socket.socket(socket.AF_UNIX)
client.connect(where)
client.sendall(sys.stdin.buffer.read())
client.recv(100)  # who goes before the answer has the other end with a broken pipe
"""


def gpu(index: int, mps: bool = True) -> Gpu:
    return Gpu(index, f"GPU-{index}", "H100", 80 << 30, "", False, (), mps=mps)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nvidia-cuda-mps-control").write_text(PROGRAM)
    (programs / "nvidia-cuda-mps-control").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    yield tmp_path
    if (tmp_path / "mps" / "control").exists():
        Mps(tmp_path, [gpu(0)]).stop()


def serving(run_dir: Path) -> tuple[int, str]:
    """Process and GPUs of the one that serves."""
    pid, uuids = (run_dir / "mps" / "control.pid").read_text().split()
    return int(pid), uuids


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_the_next_vgpud_takes_it_over_and_the_last_slice_ends_it(run_dir: Path) -> None:
    old = os.umask(0o077)
    try:
        first = Mps(run_dir, [gpu(0), gpu(1, mps=False), gpu(2)])
        first.start(is_used=False)
    finally:
        os.umask(old)
    pid, uuids = serving(run_dir)
    assert uuids == "GPU-0,GPU-2"
    assert first.directory.stat().st_mode & 0o777 == 0o755  # other users' programs come by it
    second = Mps(run_dir, [gpu(0), gpu(2)])
    second.start(is_used=True)
    assert serving(run_dir)[0] == pid
    second.stop()
    wait_until(lambda: ended(pid), 5, "it has ended")


def test_one_that_was_killed_is_started_again_and_not_after_the_end(run_dir: Path) -> None:
    mps = Mps(run_dir, [gpu(0)])
    mps.start(is_used=False)
    pid, _ = serving(run_dir)
    os.kill(pid, signal.SIGKILL)
    mps.look()
    again, _ = serving(run_dir)
    assert again != pid
    mps.look()
    assert serving(run_dir)[0] == again
    mps.stop()
    mps.look()  # a look that was on its way
    wait_until(lambda: ended(again), 5)
    assert not (run_dir / "mps" / "control").exists()


def test_other_gpus_are_served_when_nobody_is_under_it(run_dir: Path) -> None:
    Mps(run_dir, [gpu(0)]).start(is_used=False)
    pid, _ = serving(run_dir)
    with pytest.raises(MpsError, match="MPS runs for GPU-0, and slices are under it: stop their servers before"):
        Mps(run_dir, [gpu(0), gpu(1)]).start(is_used=True)
    Mps(run_dir, [gpu(0), gpu(1)]).start(is_used=False)
    other, uuids = serving(run_dir)
    assert (ended(pid), uuids) == (True, "GPU-0,GPU-1")
    Mps(run_dir, [gpu(0, mps=False)]).start(is_used=False)  # none is wanted any more
    wait_until(lambda: ended(other), 5)


def test_what_does_not_start_says_so_and_is_tried_again(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mps = Mps(run_dir, [gpu(0)])
    mps.start(is_used=False)
    (run_dir / "mps" / "broken").touch()
    os.kill(serving(run_dir)[0], signal.SIGKILL)
    mps.look()

    def no_more(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(mps_module.subprocess, "Popen", no_more)
        mps.look()
    (run_dir / "mps" / "broken").unlink()
    mps.look()
    assert not ended(serving(run_dir)[0])
    mps.stop()
    (run_dir / "mps" / "broken").touch()
    with pytest.raises(MpsError, match=r"did not start: see .*mps\.log"):
        Mps(run_dir, [gpu(0)]).start(is_used=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MpsError, match="needs nvidia-cuda-mps-control, which is not here"):
        Mps(run_dir, [gpu(0)]).start(is_used=False)
    Mps(run_dir, []).start(is_used=False)  # who does not want it needs no such program


def test_a_slice_gets_its_percent_and_burst_all_that_is_left(run_dir: Path) -> None:
    mps = Mps(run_dir, [gpu(0)])
    where = str(run_dir / "mps")
    assert mps.environment(Quota(1 << 30, 12.5)) == {
        "CUDA_MPS_PIPE_DIRECTORY": where,
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "12.5",
    }
    assert mps.environment(Quota(1 << 30, 25, Policy.BURST))["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "100"
