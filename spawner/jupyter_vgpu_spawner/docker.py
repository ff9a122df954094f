"""A container for each user, with a slice of a GPU inside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from docker import APIClient
from docker.errors import APIError
from docker.tls import TLSConfig
from dockerspawner import DockerSpawner
from jupyterhub.utils import maybe_future
from traitlets import Bool

from .mixin import Json, VGPUMixin
from .nodes import NodeConfig

NATIVE = "/opt/vgpu"
SLICE = "/run/vgpu/slice"
BOARD = "/run/vgpu/board"
EMULATED = "/run/vgpu/emulated"
MPS = "/run/vgpu/mps"
REMOVED_S = 30


class VGPUDockerSpawner(VGPUMixin, DockerSpawner):
    """DockerSpawner whose containers get a slice of a GPU; every option of DockerSpawner works as before.

    The node daemon runs on the Docker host; with `vgpu_nodes` each node has its own engine.
    """

    remove = Bool(
        True,
        help="""
        Containers are removed when their server stops.

        Other than DockerSpawner's, for one that is kept would come back with the environment and the mounts of a slice
        that is gone. What is to stay belongs into a volume::

            c.DockerSpawner.volumes = {"jupyterhub-{username}": "/home/jovyan"}

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    has_engines: ClassVar[bool] = True

    @property
    def _place(self) -> NodeConfig | None:
        """Where this server runs; None: on a node that the config has no more."""
        return self.fleet.configs.get(self._node)

    @property
    def client(self) -> APIClient:
        """The engine of this server's node."""
        if self._place and self._place.docker:
            return _engine(self._place, json.dumps(self.client_kwargs, sort_keys=True, default=str))
        hubs_own: APIClient = super().client
        return hubs_own

    @property
    def executor(self) -> ThreadPoolExecutor:
        """One for each engine: a node that does not answer keeps no other waiting."""
        return _executor(self._place.docker) if self._place and self._place.docker else super().executor

    async def poll(self) -> Any:
        """Of a node that the config has no more nothing runs for this hub."""
        return await super().poll() if self._place else 0

    async def stop(self, now: bool = False) -> None:
        """Nor is there anything to stop."""
        if self._place:
            await super().stop(now)
        else:
            await self.close_slice()

    async def remove_object(self) -> None:
        """Also one that runs, of a server that the hub had given up while its node was away; and until it is gone."""
        try:
            await self.docker("remove_container", self.object_id, v=True, force=True)
        except APIError as error:
            if error.status_code not in (404, 409):  # gone, or Docker is at it
                raise
        for _ in range(REMOVED_S):
            if await self.get_object() is None:
                return
            await asyncio.sleep(1)

    @property
    def volume_binds(self) -> dict[str, dict[str, str]]:
        """The user's volumes, and read-only: launcher, shim and the tenant's own directory."""
        binds: dict[str, dict[str, str]] = dict(super().volume_binds)
        if self._launch:
            binds[self._launch["native"]] = {"bind": NATIVE, "mode": "ro"}
            binds[self._launch["directory"]] = {"bind": SLICE, "mode": "ro"}
            if pipes := self._launch["mps"]:
                binds[pipes] = {"bind": MPS, "mode": "rw"}
            if device := self._launch["emulated_device"]:
                # the emulated card's device node, so to speak: programs write to it as to /dev/nvidia0
                binds[device] = {"bind": f"{EMULATED}/{Path(device).name}", "mode": "rw"}
        if self._board_dir:
            binds[self._board_dir] = {"bind": BOARD, "mode": "ro"}
        return binds

    def board_directory(self) -> str:
        return BOARD

    def slice_environment(self) -> dict[str, str]:
        environment = super().slice_environment()
        if not self._launch:
            return environment
        uuid = environment["CUDA_VISIBLE_DEVICES"]
        # for hosts whose containers get the driver's libraries from NVIDIA's runtime
        environment |= {"NVIDIA_VISIBLE_DEVICES": uuid, "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
        environment["VGPU_SLICE_DIR"] = SLICE
        if self._launch["mps"]:
            environment["CUDA_MPS_PIPE_DIRECTORY"] = MPS
        if self._launch["emulated_device"]:
            environment["VGPU_EMULATED_DIR"] = EMULATED
        return environment

    def slice_prefix(self) -> list[str]:
        return [f"{NATIVE}/bin/vgpu-run", "--dir", SLICE, "--"] if self._launch else []

    async def get_command(self) -> list[str]:
        """The launcher goes before the command: an image's entry point has dropped its privileges by then."""
        return [*self.slice_prefix(), *await super().get_command()]

    async def create_object(self) -> Any:
        with self._for_now("extra_host_config", self._with_devices), self._for_now("host_ip", self._on_node):
            return await super().create_object()

    @contextmanager
    def _for_now(self, trait: str, change: Any) -> Iterator[None]:
        """What the config says of all containers, changed for this one."""
        configured = getattr(self, trait)
        setattr(self, trait, change(configured))
        try:
            yield
        finally:
            setattr(self, trait, configured)

    def _with_devices(self, configured: Any) -> Any:
        if not (self._launch and self._launch["devices"]):
            return configured
        devices = [f"{path}:{path}:rw" for path in self._launch["devices"]]
        # a client in another IPC namespace than the service's waits for ever, and ends the others' programs
        ipc = {"ipc_mode": "host"} if self._launch["mps"] else {}

        async def with_devices(spawner: Any) -> Json:
            value = configured(spawner) if callable(configured) else configured
            config: Json = dict(await maybe_future(value))
            return config | {"devices": [*config.get("devices", []), *devices]} | ipc

        return with_devices

    def _on_node(self, configured: str) -> str:
        return (self._place.ip if self._place else "") or configured


class _NodeEngine(APIClient):
    """Believes the node's own authority: with REQUESTS_CA_BUNDLE set, requests would believe that one's instead."""

    trust_env = property(lambda _: False, lambda _, __: None)


@lru_cache(maxsize=64)
def _engine(node: NodeConfig, options: str) -> APIClient:
    """options: DockerSpawner's `client_kwargs`, as JSON. Called off the event loop first: it asks the engine."""
    tls = TLSConfig(client_cert=(node.cert, node.key), ca_cert=node.ca, verify=True) if node.ca else None
    return _NodeEngine(**{"version": "auto", **json.loads(options), "base_url": node.docker, "tls": tls})


@lru_cache(maxsize=64)
def _executor(_url: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)
