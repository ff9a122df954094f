"""What every VGPU spawner does: quota traits, the spawn page, and a slice's life beside its server's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from jupyter_vgpu.client import Client, DaemonAway, DaemonError
from jupyter_vgpu.paths import ADMIN_SOCKET, default_run_dir
from jupyter_vgpu.quota import Policy, Quota, QuotaError, parse_cores, parse_memory
from jupyterhub.traitlets import ByteSpecification, Callable
from jupyterhub.utils import maybe_future
from tornado import web
from traitlets import Dict, Enum, Float, HasTraits, List, Unicode, Union

from .choices import FIELD, NO_GPU, Choice, allowed_slices, choices, pick, slice_key

Json = dict[str, Any]

_templates = Environment(
    loader=PackageLoader("jupyter_vgpu_spawner"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
)


def spawn_error(status: int, message: str) -> web.HTTPError:
    """An error that every page and API of the hub shows in these words."""
    error = web.HTTPError(status, message.replace("%", "%%"), reason=None)
    error.jupyterhub_message = message
    return error


class VGPUMixin(HasTraits):  # type: ignore[misc]
    """Give each server a slice of a GPU. Goes before a Spawner class in the bases."""

    gpu_mem_limit = Union(
        [Callable(), ByteSpecification()],
        default_value=None,
        allow_none=True,
        help="""
        GPU memory for each user's server, CUDA context included.

        An allocation beyond it fails with CUDA's own out-of-memory error. It is also the ceiling for what the
        user may choose of `gpu_slices`. None: the server gets no GPU. May be a callable that takes the spawner::

            c.VGPUDockerSpawner.gpu_mem_limit = lambda spawner: "8G" if spawner.user.admin else "4G"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_core_limit = Union(
        [Callable(), Float()],
        default_value=100.0,
        help="""
        Share of a GPU's compute for each user's server, in percent.

        Above 0 and up to 100. It is also the ceiling for what the user may choose of `gpu_slices`.
        May be a callable that takes the spawner::

            c.VGPUDockerSpawner.gpu_core_limit = 25

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_policy = Union(
        [Callable(), Enum([str(policy) for policy in Policy])],
        default_value=str(Policy.HARD),
        help="""
        What happens to compute that others leave idle.

        `hard`: a server never gets more than its percent. `burst`: it gets its percent, and what is idle.
        May be a callable that takes the spawner::

            c.VGPUDockerSpawner.gpu_policy = "burst"

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    gpu_slices = List(
        Dict(),
        help="""
        The slices that a user may choose from on the spawn page.

        Each with `memory` and `cores`; those above `gpu_mem_limit` or `gpu_core_limit` are not offered.
        Empty: the limits themselves are the one slice::

            c.VGPUDockerSpawner.gpu_slices = [{"memory": "2G", "cores": 10}, {"memory": "4G", "cores": 25}]

        .. versionadded:: 0.1
        """,
    ).tag(config=True)

    vgpu_socket = Unicode(
        help="""
        The node daemon's admin socket.

        Default: where `jupyter vgpu node` puts it for the hub's own user::

            c.VGPUDockerSpawner.vgpu_socket = "/run/vgpu/vgpud.sock"

        .. versionadded:: 0.1
        """
    ).tag(config=True)

    def _vgpu_socket_default(self) -> str:
        return str(default_run_dir() / ADMIN_SOCKET)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tenant: str | None = None
        self._launch: Json | None = None
        # the admin's own form, or none of it, goes before ours: options_form = "" switches ours off
        if not self.has_trait("options_form") or "options_form" not in self._trait_values:
            self.options_form = self._vgpu_form
        if self.options_from_form.__func__ is type(self).options_from_form.default_value if False else False:
            pass

    # --- quota ---

    @property
    def vgpu_client(self) -> Client:
        """The node daemon."""
        return Client(self.vgpu_socket)

    async def _resolve(self, value: Any) -> Any:
        return await maybe_future(value(self)) if callable(value) else value

    async def gpu_ceiling(self) -> Quota | None:
        """The most that config gives this user; None: no GPU. Raises QuotaError."""
        memory = await self._resolve(self.gpu_mem_limit)
        if memory is None or memory == 0:
            return None
        cores = parse_cores(await self._resolve(self.gpu_core_limit))
        return Quota(parse_memory(memory), cores, Policy(await self._resolve(self.gpu_policy)))

    async def _offered(self) -> list[Quota]:
        ceiling = await self.gpu_ceiling()
        return allowed_slices(self.gpu_slices, ceiling) if ceiling else []
