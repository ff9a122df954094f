"""A container for each user, with a slice of a GPU inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dockerspawner import DockerSpawner
from jupyterhub.utils import maybe_future

from .mixin import Json, VGPUMixin

NATIVE = "/opt/vgpu"
SLICE = "/run/vgpu/slice"
EMULATED = "/run/vgpu/emulated"


class VGPUDockerSpawner(VGPUMixin, DockerSpawner):
    """DockerSpawner whose containers get a slice of a GPU; every option of DockerSpawner works as before.

    The node daemon runs on the Docker host. Use `c.DockerSpawner.remove = True`: a container that is kept
    would come back with the environment and mounts of a slice that is gone.
    """

    @property
    def volume_binds(self) -> dict[str, dict[str, str]]:
        """The user's volumes, and read-only: launcher, shim and the tenant's own directory."""
        binds: dict[str, dict[str, str]] = dict(super().volume_binds)
        if self._launch:
            binds[self._launch["native"]] = {"bind": NATIVE, "mode": "ro"}
            binds[self._launch["directory"]] = {"bind": SLICE, "mode": "ro"}
            if device := self._launch["emulated_device"]:
                # the emulated card's device node, so to speak: programs write to it as to /dev/nvidia0
                binds[device] = {"bind": f"{EMULATED}/{Path(device).name}", "mode": "rw"}
        return binds

    def slice_environment(self) -> dict[str, str]:
        environment = super().slice_environment()
        if not self._launch:
            return environment
        uuid = environment["CUDA_VISIBLE_DEVICES"]
        # for hosts whose containers get the driver's libraries from NVIDIA's runtime
        environment |= {"NVIDIA_VISIBLE_DEVICES": uuid, "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
        environment["VGPU_SLICE_DIR"] = SLICE
        if self._launch["emulated_device"]:
            environment["VGPU_EMULATED_DIR"] = EMULATED
        return environment

    def slice_prefix(self) -> list[str]:
        return [f"{NATIVE}/bin/vgpu-run", "--dir", SLICE, "--"] if self._launch else []

    async def get_command(self) -> list[str]:
        """The launcher goes before the command: an image's entry point has dropped its privileges by then."""
        return [*self.slice_prefix(), *await super().get_command()]

    async def create_object(self) -> Any:
        if not (self._launch and self._launch["devices"]):
            return await super().create_object()
        devices = [f"{path}:{path}:rw" for path in self._launch["devices"]]
        configured: Any = getattr(self, "extra_host_config")  # noqa: B009 (its type is traitlets' secret)

        async def with_devices(spawner: Any) -> Json:
            value = configured(spawner) if callable(configured) else configured
            config: Json = dict(await maybe_future(value))
            return config | {"devices": [*config.get("devices", []), *devices]}

        self.extra_host_config = with_devices
        try:
            return await super().create_object()
        finally:
            self.extra_host_config = configured
