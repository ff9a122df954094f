"""What every VGPU spawner does: quota traits, the spawn page, and a slice's life beside its server's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, select_autoescape
from jupyterhub.traitlets import ByteSpecification, Callable
from jupyterhub.utils import maybe_future
from tornado import web
from traitlets import Dict, Enum, Float, List, Unicode, Union, default
from traitlets.config import Configurable

from jupyter_vgpu.client import Client, DaemonAway, DaemonError
from jupyter_vgpu.paths import ADMIN_SOCKET, default_run_dir
from jupyter_vgpu.quota import Policy, Quota, QuotaError, parse_cores, parse_memory

from .choices import FIELD, NO_GPU, Choice, allowed_slices, choices, describe, pick, slice_key, why_not

if TYPE_CHECKING:
    from jupyterhub.spawner import Spawner as _Base
else:
    _Base = Configurable

Json = dict[str, Any]

_templates = Environment(
    loader=PackageLoader("jupyter_vgpu_spawner"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
)


def spawn_error(status: int, message: str) -> web.HTTPError:
    """An error that every page and API of the hub shows in these words."""
    error = web.HTTPError(status, message)
    error.jupyterhub_message = message  # type: ignore[attr-defined]
    return error


class VGPUMixin(_Base):
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

    _tenant: str | None = None
    _launch: Json | None = None

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

    async def chosen_quota(self) -> Quota | None:
        """What this server gets: the user's choice under the config's ceiling. None: no GPU.

        `user_options` also come by REST and from the database, so they are checked here again. Raises HTTPError.
        """
        try:
            offered = await self._offered()
            if not offered:
                return None
            key = self.user_options.get(FIELD)
            return pick(key if key is not None else slice_key(offered[0]), offered)
        except QuotaError as error:
            raise spawn_error(400, str(error)) from error

    # --- spawn page ---

    @default("options_form")
    def _default_options_form(self) -> Any:
        return self.vgpu_options_form

    @default("options_from_form")
    def _default_options_from_form(self) -> Any:
        return self.vgpu_options_from_form

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Json:
        return {}  # start() reads them itself

    async def vgpu_options_form(self, spawner: Any) -> str:
        """The allowed slices with what is free now. What the base class would show comes first."""
        base = getattr(super(), "_default_options_form", None)
        form = base() if base else ""
        form = await maybe_future(form(spawner)) if callable(form) else form
        offered = await self._offered()
        if not offered:
            return str(form)
        trouble, lines = "", [Choice(slice_key(quota), "") for quota in offered]
        try:
            gpus = (await self.vgpu_client.arequest("GET", "/api/gpus"))["gpus"]
            lines = choices(offered, gpus)
        except DaemonError as error:
            self.log.error("spawn page of %s: %s", self.user.name, error)
            trouble = (
                "The GPU service of this hub does not answer now. You can start without a GPU, or try again later."
            )
            lines = [Choice(line.key, describe(quota), "not now") for line, quota in zip(lines, offered, strict=True)]
        selected = next((line.key for line in lines if not line.why_not), NO_GPU)
        page = _templates.get_template("slices.html")
        return str(form) + page.render(field=FIELD, none=NO_GPU, lines=lines, selected=selected, trouble=trouble)

    async def vgpu_options_from_form(self, form_data: dict[str, list[str]], spawner: Any = None) -> Json:
        """The form's choice; refused in words while the form is still on the screen. Reserves nothing."""
        base = getattr(super(), "_default_options_from_form", None)
        from_form = base() if base else None
        options: Json = dict(await maybe_future(from_form(form_data))) if from_form else {}
        options.pop(FIELD, None)
        try:
            offered = await self._offered()
            if not offered:
                return options
            key = (form_data.get(FIELD) or [slice_key(offered[0])])[0]
            quota = pick(key, offered)
        except QuotaError as error:
            raise spawn_error(400, str(error)) from error
        if quota:
            await self._check_room(quota)
        return options | {FIELD: key}

    async def _check_room(self, quota: Quota) -> None:
        try:
            gpus = (await self.vgpu_client.arequest("GET", "/api/gpus"))["gpus"]
        except DaemonAway as error:
            self.log.error("%s", error)
            raise spawn_error(
                503, "The GPU service of this hub does not answer now: start without a GPU, or try again later."
            ) from error
        if reason := why_not(quota, gpus):
            raise spawn_error(
                409, f"No room for {describe(quota)} now; {reason}. Choose a smaller slice, or start without a GPU."
            )

    # --- the slice's life ---

    @property
    def tenant_name(self) -> str:
        """The tenant's name at vgpud: one for each server of each user."""
        return f"{self.user.name}/{self.name}"

    async def _open_slice(self) -> None:
        quota = await self.chosen_quota()
        await self.close_slice()
        if quota is None:
            return
        body = {"name": self.tenant_name, "memory": quota.memory, "cores": quota.cores, "policy": str(quota.policy)}
        try:
            tenant = await self._create(body | self.slice_owner())
        except DaemonAway as error:
            self.log.error("%s", error)
            message = "The GPU service of this hub does not answer now: start without a GPU, or try again later."
            raise spawn_error(503, message) from error
        except DaemonError as error:
            raise spawn_error(error.status, f"No GPU slice for this server: {error}") from error
        self._tenant, self._launch = tenant["id"], tenant["launch"]

    async def _create(self, body: Json) -> Json:
        try:
            created: Json = await self.vgpu_client.arequest("POST", "/api/tenants", body)
        except DaemonError as error:
            if error.status != 409 or "exists already" not in str(error):
                raise
            # what an earlier server of this name left, whose end nobody saw
            await self.vgpu_client.arequest("DELETE", "/api/tenants/" + quote(self.tenant_name, safe=""))
            created = await self.vgpu_client.arequest("POST", "/api/tenants", body)
        return created

    def slice_owner(self) -> Json:
        """Fields that say who alone may enter the slice; a container's mount says it for itself."""
        return {}

    async def close_slice(self) -> None:
        """Remove the tenant, if there is one. Safe to call again."""
        tenant, self._tenant, self._launch = self._tenant, None, None
        if tenant is None:
            return
        try:
            await self.vgpu_client.arequest("DELETE", f"/api/tenants/{tenant}")
        except DaemonError as error:
            if error.status != 404:
                self.log.error("GPU slice of %s not removed: %s", self.tenant_name, error)

    async def start(self) -> Any:
        """Open the slice, then start the server in it; a server that does not start leaves no slice."""
        await self._open_slice()
        try:
            return await super().start()
        except BaseException:
            await self.close_slice()
            raise

    async def stop(self, now: bool = False) -> None:
        await super().stop(now)
        await self.close_slice()

    async def run_post_stop_hook(self) -> Any:
        """Also called where stop() is not: for a server that ended by itself, or never came up."""
        await self.close_slice()
        return await maybe_future(super().run_post_stop_hook())

    def get_state(self) -> Json:
        state: Json = super().get_state()
        return state | ({"vgpu_tenant": self._tenant} if self._tenant else {})

    def load_state(self, state: Json) -> None:
        super().load_state(state)
        self._tenant = state.get("vgpu_tenant")

    def get_env(self) -> dict[str, str]:
        """The server's environment, with what a program in the slice needs."""
        env: dict[str, str] = super().get_env()
        return env | self.slice_environment() if self._launch else env

    def slice_environment(self) -> dict[str, str]:
        """What the launcher and the shim look at. Paths are those of the server's side."""
        return dict(self._launch["environment"]) if self._launch else {}

    def slice_prefix(self) -> list[str]:
        """What goes before the server's command; empty without a GPU."""
        if not self._launch:
            return []
        return [f"{self._launch['native']}/bin/vgpu-run", "--dir", self._launch["directory"], "--"]
