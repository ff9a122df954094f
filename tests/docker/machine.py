"""Another machine for the tests: a network namespace with an address, a Docker Engine and a GPU node of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import docker
from support.certificates import Authority
from support.node import Node, wait_until

from jupyter_vgpu.client import Tls

DOCKER_PORT, API_PORT = 2376, 9413


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machine:
    """Its daemons speak with who shows the hub's certificate. gateway: this machine's address, as that one sees it."""

    def __init__(self, image: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="vgpu-machine-"))
        self._engine: subprocess.Popen[bytes] | None = None
        self._name = f"vgpu{os.getpid()}"
        network = f"10.231.{os.getpid() % 250}"
        self.gateway, self.ip = f"{network}.1", f"{network}.2"
        authority = Authority(self._directory / "ca")
        self.hub, own = authority.hub(), authority.node(self.ip)
        self._inside = ["nsenter", f"--net=/run/netns/{self._name}"]
        try:
            self._connect()
            self._start_engine(own)
            self.client: docker.DockerClient = wait_until(self._client, 60, "the other machine's engine")
            self._load(image)
            self.node = self._start_node(own)
        except BaseException:  # nobody will stop it
            self._end()
            raise

    def _start_node(self, own: Tls) -> Node:
        files = {"cert": own.cert, "key": own.key, "ca": own.ca}
        api = [f"--api={self.ip}:{API_PORT}", *(f"--NodeApp.api_{name}={path}" for name, path in files.items())]
        return Node("--emulate", "--emulated-memory=16G", "--NodeApp.allow_shim_tier=False", *api, prefix=self._inside)

    @property
    def config(self) -> dict[str, str]:
        """For the hub's `vgpu_nodes`."""
        return {
            "vgpud": f"https://{self.ip}:{API_PORT}",
            "docker": f"tcp://{self.ip}:{DOCKER_PORT}",
            "ip": self.ip,
            "ca": self.hub.ca,
            "cert": self.hub.cert,
            "key": self.hub.key,
        }

    def _connect(self) -> None:
        here, there = f"{self._name}h", f"{self._name}t"
        _ip("netns", "add", self._name)
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", self._name)
        _ip("addr", "add", f"{self.gateway}/24", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", self._name, "addr", "add", f"{self.ip}/24", "dev", there)
        _ip("-n", self._name, "link", "set", there, "up")
        _ip("-n", self._name, "link", "set", "lo", "up")

    def _start_engine(self, own: Tls) -> None:
        roots = [f"--{name}-root={self._directory}/{name}" for name in ("data", "exec")]
        where = [f"--host=unix://{self._directory}/docker.sock", f"--host=tcp://{self.ip}:{DOCKER_PORT}"]
        files = [f"--tlscacert={own.ca}", f"--tlscert={own.cert}", f"--tlskey={own.key}"]
        command = ["dockerd", *roots, f"--pidfile={self._directory}/docker.pid", *where, "--tlsverify", *files]
        with (self._directory / "dockerd.log").open("ab") as log:
            # not `ip netns exec`, which would hide the cgroups from the engine
            self._engine = subprocess.Popen([*self._inside, *command], stdout=log, stderr=log, start_new_session=True)

    def _client(self) -> docker.DockerClient | None:
        log = self._directory / "dockerd.log"
        assert self._engine
        assert self._engine.poll() is None, f"the other machine's engine ended:\n{log.read_text()[-3000:]}"
        try:
            return docker.DockerClient(base_url=f"unix://{self._directory}/docker.sock", timeout=120)
        except docker.errors.DockerException:
            return None

    def _load(self, image: str) -> None:
        save = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        load = ["docker", "--host", f"unix://{self._directory}/docker.sock", "load", "--quiet"]
        subprocess.run(load, stdin=save.stdout, check=True, capture_output=True)
        assert save.wait() == 0

    def containers(self) -> list[str]:
        return [container.name for container in self.client.containers.list(all=True)]

    def vanish(self) -> None:
        """As when its cable is pulled: nothing answers, and nothing says so."""
        _ip("link", "set", f"{self._name}h", "down")

    def come_back(self) -> None:
        _ip("link", "set", f"{self._name}h", "up")

    def stop(self) -> None:
        self.node.stop()
        for container in self.client.containers.list(all=True):
            container.remove(force=True)
        self.client.close()
        self._end()

    def _end(self) -> None:
        if self._engine:
            self._engine.send_signal(signal.SIGTERM)
            self._engine.wait(60)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "delete", self._name)
        shutil.rmtree(self._directory, ignore_errors=True)
