"""Starting a program on a real GPU: natively, in a slice of ours, under MPS, under HAMi-core."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.node import Node


class Program:
    """A started program that says "ready", waits for a line and answers with one JSON object."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ready(self) -> Program:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if line != "ready":
            self.process.kill()
            raise RuntimeError(f"no start: {line!r} {self.process.stderr.read() if self.process.stderr else ''}")
        return self

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def stretch(self) -> dict[str, Any]:
        """One answer of a program that gives one for each line, and waits between them."""
        self.go()
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended: {self.process.communicate()[1][-800:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """End a program that waits for its next line."""
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def answer(self, seconds: float = 120) -> dict[str, Any]:
        try:
            out, err = self.process.communicate("\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise RuntimeError(f"no answer within {seconds} s from {self.process.args}") from None
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(f"{self.process.args} ended with {self.process.returncode}: {err[-800:]}")
        found: dict[str, Any] = json.loads(lines[-1])
        return found


def _popen(argv: list[str], **environment: str) -> Program:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return Program(subprocess.Popen(argv, env=os.environ | environment, text=True, **pipes))


def native(argv: list[str]) -> Program:
    return _popen(argv)


class Slices:
    """A node daemon of the benchmark's own, and tenants on it."""

    def __init__(self, *arguments: str) -> None:
        os.environ.pop("VGPU_GUARD_TRACE", None)
        self.node = Node("--NodeApp.core_overcommit=4", *arguments)

    def stop(self) -> None:
        self.node.stop()

    @contextmanager
    def tenant(
        self, cores: float, memory: str = "16G", policy: str = "hard", name: str = "a", **more: str
    ) -> Iterator[Tenant]:
        made = self.node.tenant(memory, cores, name, policy=policy, **more)
        try:
            yield Tenant(self.node, made)
        finally:
            self.node.client.request("DELETE", f"/api/tenants/{made['id']}")


class Tenant:
    """A slice to start programs in, and to resize."""

    def __init__(self, node: Node, made: dict[str, Any]) -> None:
        self.node = node
        self.made = made

    def start(self, argv: list[str]) -> Program:
        return Program(self.node.spawn(self.made, *argv, stdin=subprocess.PIPE))

    def resize(self, **quota: object) -> None:
        self.node.client.request("PATCH", f"/api/tenants/{self.made['id']}", quota)


class Mps:
    """NVIDIA's Multi-Process Service, with its own pipe directory; ended by name of that directory alone."""

    available = shutil.which("nvidia-cuda-mps-control") is not None

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mps-"))
        self.environment = {
            "CUDA_MPS_PIPE_DIRECTORY": str(self.directory),
            "CUDA_MPS_LOG_DIRECTORY": str(self.directory),
        }
        subprocess.run(["nvidia-cuda-mps-control", "-d"], env=os.environ | self.environment, check=True)

    def start(self, argv: list[str], percent: float, memory: str = "16G") -> Program:
        limits = {
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{percent:g}",
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={memory}",
        }
        return _popen(argv, **self.environment, **limits)

    def stop(self) -> None:
        subprocess.run(
            ["nvidia-cuda-mps-control"],
            input="quit\n",
            text=True,
            env=os.environ | self.environment,
            timeout=30,
            check=False,
        )
        for pid in self.directory.glob("*.pid"):
            try:
                os.kill(int(pid.read_text()), signal.SIGTERM)
            except (ValueError, ProcessLookupError):
                continue
        shutil.rmtree(self.directory, ignore_errors=True)


class HamiCore:
    """HAMi-core, where the caller names its built library in HAMI_CORE_LIB."""

    library = os.environ.get("HAMI_CORE_LIB")
    available = bool(library and Path(library).exists())

    @staticmethod
    def start(argv: list[str], percent: float, memory: str = "16g") -> Program:
        cache = tempfile.mkdtemp(prefix="hami-")
        return _popen(
            argv,
            LD_PRELOAD=str(HamiCore.library),
            CUDA_DEVICE_MEMORY_LIMIT=memory.lower(),
            CUDA_DEVICE_SM_LIMIT=str(int(percent)),
            CUDA_DEVICE_MEMORY_SHARED_CACHE=f"{cache}/vgpu.cache",
            LIBCUDA_LOG_LEVEL="0",
        )
