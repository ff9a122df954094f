"""A real node daemon for a test: its own directories, started and stopped as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_vgpu.client import Client, DaemonAway
from jupyter_vgpu.native import program

CLI = [sys.executable, "-m", "jupyter_vgpu.cli.main"]


def left_out(reason: str) -> None:
    """Leave a test out, aloud; where everything has to run (CI=true) that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI runs everything, but {reason}")
    pytest.skip(reason)


def wait_until(condition: Callable[[], Any], seconds: float = 15, what: str = "") -> Any:
    """Poll until the condition holds; fails the test when it does not in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)
    return value


class Node:
    """`jupyter vgpu node` in directories of its own. run_dir: another one for what is gone after a reboot."""

    def __init__(self, *arguments: str, prefix: list[str] | None = None, run_dir: Path | None = None) -> None:
        self.prefix = prefix or []
        # short: a Unix socket's path has 107 characters
        self.root = Path(tempfile.mkdtemp(prefix="vgpu-"))
        self.root.chmod(0o777 if prefix else 0o755)
        self.run_dir = run_dir or self.root / "run"
        self.arguments = list(arguments)
        self.log = self.root / "log"
        self.client = Client(self.run_dir / "vgpud.sock")
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:  # nobody will stop it
            if self.process:
                self.process.terminate()
            raise

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    *CLI,
                    "node",
                    f"--run-dir={self.run_dir}",
                    f"--data-dir={self.root / 'data'}",
                    *self.arguments,
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, 30, "the node daemon answers")

    def _answers(self) -> bool:
        assert self.process
        if self.process.poll() is not None:
            raise AssertionError(f"the node daemon ended with {self.process.returncode}:\n{self.log.read_text()}")
        try:
            self.client.request("GET", "/api/health")
        except DaemonAway:
            return False
        return True

    def kill(self) -> None:
        """kill -9 the daemon."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def guard_pid(self) -> int:
        return int(self.client.request("GET", "/api/health")["guard"]["pid"])

    def kill_guard(self) -> int:
        """kill -9 the guard; returns the number that it had."""
        pid = self.guard_pid()
        os.kill(pid, signal.SIGKILL)
        return pid

    def tenant(self, memory: object = "1G", cores: object = 50, name: str = "tenant", **more: Any) -> dict[str, Any]:
        body = {"name": name, "memory": memory, "cores": cores, **more}
        created: dict[str, Any] = self.client.request("POST", "/api/tenants", body)
        return created

    def show(self, key: str) -> dict[str, Any]:
        view: dict[str, Any] = self.client.request("GET", f"/api/tenants/{key}")
        return view

    def used(self, key: str) -> int:
        return int(self.show(key)["usage"]["memory"])

    def raw(self, request: bytes, hang_up: bool = True) -> bytes:
        """What comes back on the admin socket for bytes that may be no proper request.

        hang_up: say that there is no more; a daemon that has not answered yet then need not.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(15)
            connection.connect(self.client.where)
            connection.sendall(request)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(OSError):
                while chunk := connection.recv(65536):
                    answer += chunk
            return answer

    def metrics(self) -> str:
        return self.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", hang_up=False).decode()

    def spawn(self, tenant: dict[str, Any], *argv: str, **more: Any) -> subprocess.Popen[str]:
        """Start a program in a slice, through the launcher."""
        environment = {**os.environ, **tenant["launch"]["environment"], **more.pop("env", {})}
        command = [
            *more.pop("prefix", []),
            str(program("vgpu-run")),
            "--dir",
            tenant["launch"]["directory"],
            "--",
            *argv,
        ]
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
        )

    def stop(self) -> None:
        """End everything that this node started, whatever the test did to it."""
        if self.process and self.process.poll() is None:
            for tenant in self.client.request("GET", "/api/tenants")["tenants"]:
                self.client.request("DELETE", f"/api/tenants/{tenant['id']}")
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.root, ignore_errors=True)


class Worker:
    """tests/support/worker.py in a slice."""

    def __init__(self, node: Node, tenant: dict[str, Any], **more: Any) -> None:
        script = str(Path(__file__).with_name("worker.py"))
        self.process = node.spawn(tenant, sys.executable, script, stdin=subprocess.PIPE, **more)
        self.ready = self._read()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr
            raise AssertionError(f"the worker ended with {self.process.wait()}: {self.process.stderr.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def send(self, op: str, **values: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"op": op, **values}) + "\n")
        self.process.stdin.flush()

    def ask(self, op: str, **values: Any) -> dict[str, Any]:
        self.send(op, **values)
        return self._read()

    def answer(self) -> dict[str, Any]:
        """Of what was sent before."""
        return self._read()

    def close(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
