"""`make demo`: a JupyterHub with GPU slices on this machine, until Ctrl-C; `--smoke` walks through it and ends."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import requests
import smoke

HERE = Path(__file__).parent
PASSWORD = "gpu-slices"
PORTS = (15000, 32000)
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def free_port() -> int:
    """A port with the next two free as well: proxy, hub and the proxy's API.

    Below those that the kernel gives to whoever connects somewhere, for the hub takes its ports a while later.
    """
    for port in random.sample(range(*PORTS, 3), 100):
        if all(_is_free(port + i) for i in range(3)):
            return port
    raise SystemExit("no free ports on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def find_proxy() -> str:
    """The command of JupyterHub's proxy: the project's own copy, or the one on PATH."""
    own = HERE.parent / ".tools" / "node_modules" / ".bin" / "configurable-http-proxy"
    found = str(own) if own.exists() else shutil.which("configurable-http-proxy")
    if not found:
        raise SystemExit(
            "configurable-http-proxy is missing: 'make demo' installs it, or 'npm install configurable-http-proxy'"
        )
    return found


class Demo:
    """Node daemon and hub in one directory, which goes with them."""

    def __init__(self, port: int, emulate: bool, memory: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="vgpu-demo-"))
        self.url = f"http://127.0.0.1:{port}"
        self._port, self._emulate, self._memory = port, emulate, memory
        # what JupyterLab would ask on its first start
        settings = self.root / "jupyter" / "labconfig" / "default_setting_overrides.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}))
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self) -> None:
        """Start both and wait until the login page answers."""
        print("Starting the GPU node daemon" + (" with an emulated GPU" if self._emulate else "") + " …", flush=True)
        node = [sys.executable, "-m", "jupyter_vgpu.cli.main", "node"]
        node += [f"--run-dir={self.root}/run", f"--data-dir={self.root}/data"]
        if self._emulate:
            node += ["--emulate", f"--emulated-memory={self._memory}"]
        self._spawn("node", node)
        self._wait("the GPU node daemon", (self.root / "run" / "vgpud.sock").exists)
        print("Starting JupyterHub …", flush=True)
        self._spawn("hub", [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "jupyterhub_config.py")])
        self._wait("JupyterHub", self._answers)

    def _spawn(self, name: str, command: list[str]) -> None:
        environment = os.environ | {
            "VGPU_DEMO_ROOT": str(self.root),
            "VGPU_DEMO_PORT": str(self._port),
            "VGPU_DEMO_PROXY": find_proxy(),
            "VGPU_DEMO_PASSWORD": PASSWORD,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        with (self.root / f"{name}.log").open("ab") as log:
            # a session of its own, so that Ctrl-C comes to this program alone, which ends them in order
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=self.root,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._processes.append((name, process))

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/hub/login", timeout=2).ok
        except requests.RequestException:
            return False

    def _wait(self, what: str, condition: object) -> None:
        end = time.monotonic() + 90
        while not condition():  # type: ignore[operator]
            for name, process in self._processes:
                if process.poll() is not None:
                    log = (self.root / f"{name}.log").read_text()[-3000:]
                    raise SystemExit(f"{what} did not start; the log of '{name}' ends:\n{log}")
            if time.monotonic() > end:
                logs = "\n".join((self.root / f"{name}.log").read_text()[-1500:] for name, _ in self._processes)
                raise SystemExit(f"{what} did not answer within 90 s; the logs end:\n{logs}")
            time.sleep(0.1)

    def failed(self) -> str | None:
        """The name of a part that ended by itself."""
        return next((name for name, process in self._processes if process.poll() is not None), None)

    def stop(self) -> None:
        """Hub first: it stops the servers, and their slices go; then the daemon, and the guard with it."""
        for number in _ENDS:  # an impatient second Ctrl-C must not leave half of it behind
            signal.signal(number, signal.SIG_IGN)
        for _, process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.root, ignore_errors=True)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="do what a user would, say how it went, and end")
    parser.add_argument("--port", type=int, default=8000, help="first of three ports; the default moves when taken")
    parser.add_argument("--emulated-memory", default="8G")
    parser.add_argument("--emulate", action="store_true", help="emulate a GPU though there is a real one")
    options = parser.parse_args()
    port = options.port
    if not 1024 <= port <= 65533:
        parser.error(f"--port {port}: give a number from 1024 to 65533 (the two after it are used too)")
    if options.smoke or not all(_is_free(port + i) for i in range(3)):
        port = free_port()
    demo = Demo(port, options.emulate or not Path("/dev/nvidiactl").exists(), options.emulated_memory)

    def interrupt(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in _ENDS:
        signal.signal(number, interrupt)
    try:
        demo.start()
        if options.smoke:
            return smoke.walk(demo.url, demo.root / "run", PASSWORD)
        print(f"\nOpen {demo.url} and log in as alice or bob, password {PASSWORD}.", flush=True)
        print(f"The admin is dean, same password: {demo.url}/services/vgpu/. Ctrl-C ends it all.\n", flush=True)
        while (name := demo.failed()) is None:
            time.sleep(0.5)
        print(f"'{name}' ended by itself; its log:\n" + (demo.root / f"{name}.log").read_text()[-3000:])
        return 1
    except KeyboardInterrupt:
        print("\nStopping …", flush=True)
        return 0
    finally:
        demo.stop()


if __name__ == "__main__":
    sys.exit(main())
