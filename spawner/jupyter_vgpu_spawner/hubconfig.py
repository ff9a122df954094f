"""`setup_vgpu(c)`: spawner, service, roles and scopes in one line of jupyterhub_config.py."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Collection, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from traitlets.config import Config
from traitlets.config.loader import LazyConfigValue
from traitlets.utils.importstring import import_item

from jupyter_vgpu.idle import Action, IdleRule
from jupyter_vgpu.paths import ADMIN_SOCKET, default_run_dir
from jupyter_vgpu.quotas import Policy

from .choices import all_slices, slice_key
from .idle import VARIABLE as IDLE_VARIABLE
from .mixin import VGPUMixin
from .nodes import NodeConfig, as_settings, parse_nodes
from .service.settings import READ_SCOPE, WRITE_SCOPE, Settings

SERVICE = "vgpu"
IDLE_SERVICE = "vgpu-idle"
ADMIN_ROLE = "vgpu-admin"
USER_ROLE = "user"
ACCESS_SCOPE = f"access:services!service={SERVICE}"
# What the service asks the hub for: users with groups, groups' properties, and to stop a server.
_SERVICE_SCOPES = ["list:users", "read:users:groups", "list:groups", "read:groups", "delete:servers"]
# And to see which slices are servers': a slice that is nobody's is removed.
_SERVICE_SCOPES += ["read:servers", "admin:server_state"]
# And for the queue: whose servers run, and to start one when its turn comes.
_QUEUE_SCOPES = ["servers"]  # a narrower one for it is not in JupyterHub 5.5
_IDLE_SCOPES = ["list:users", "read:users:activity", "read:servers", "admin:server_state", "delete:servers"]
_LIMITS = {
    "memory": "gpu_mem_limit",
    "cores": "gpu_core_limit",
    "policy": "gpu_policy",
    "mem_ceiling": "gpu_mem_ceiling",
    "core_ceiling": "gpu_core_ceiling",
    "policy_ceiling": "gpu_policy_ceiling",
    "gpus": "gpu_count_limit",
    "most_gpus": "gpu_count_ceiling",
}


def setup_vgpu(
    c: Config,
    *,
    admins: Collection[str] = (),
    admin_groups: Collection[str] = (),
    db_url: str | None = None,
    port: int | None = None,
    gpu_idle_minutes: float | None = None,
    gpu_idle_action: str | None = None,
) -> None:
    """Give a hub GPU slices: call it last in jupyterhub_config.py, after the traits that you set.

    What is set already stays: a spawner class, services, roles and scopes of your own.

    Args:
        c: the hub's config.
        admins: users who may see and change all on the service's page; those of `c.Authenticator.admin_users` may too.
        admin_groups: hub groups whose members may.
        db_url: the database with users' quotas, as SQLAlchemy writes it; by default a SQLite file beside the hub.
        port: of the service, on 127.0.0.1; by default a free one, chosen when the hub starts.
        gpu_idle_minutes: do something about who holds GPU memory and launched nothing for so long; the user is told a
            while before. A working job is never touched. None: as the trait of this name says, else nothing.
        gpu_idle_action: what: `notify` (the user is told, and no more), `kernel` (kernels that rest are shut down) or
            `server` (the server is stopped, by jupyterhub-idle-culler). None: as the trait says, else `server`.

    Raises:
        QuotaError: for a limit or slice that is none.
        ValueError: for a spawner class without slices, a node that is none, what is said by an argument and a trait,
            minutes that are none, containers that are to be kept, and where it was called before.
    """
    if any(service.get("name") == SERVICE for service in _list(c, "services")):
        raise ValueError(f"the hub's config has a service named {SERVICE!r} already: call setup_vgpu once")
    if not _get(c, "JupyterHub", "spawner_class"):
        c.JupyterHub.spawner_class = "vgpu-docker"
    spawner = _spawner_class(c.JupyterHub.spawner_class)
    if "remove" in spawner.class_traits():
        if not _is_set(c, spawner, "remove"):
            c.VGPUMixin.remove = True  # also of a class of the admin's own
        elif not _trait(c, spawner, "remove"):
            raise ValueError(
                "remove=False keeps containers, which would come back with a slice that is gone: leave it out, and "
                "give what is to stay a volume"
            )
    _say(c, spawner, "vgpu_db_url", "db_url", db_url)
    _say(c, spawner, "gpu_idle_minutes", "gpu_idle_minutes", gpu_idle_minutes)
    _say(c, spawner, "gpu_idle_action", "gpu_idle_action", gpu_idle_action)
    if not _trait(c, spawner, "vgpu_db_url"):
        c.VGPUMixin.vgpu_db_url = f"sqlite:///{Path.cwd() / 'vgpu.sqlite'}"
    if not _trait(c, spawner, "vgpu_socket"):
        c.VGPUMixin.vgpu_socket = str(default_run_dir() / ADMIN_SOCKET)
    if not _trait(c, spawner, "vgpu_hub"):
        where = f"{socket.gethostname()} {Path.cwd()} {_trait(c, spawner, 'vgpu_db_url')}"
        c.VGPUMixin.vgpu_hub = hashlib.sha256(where.encode()).hexdigest()[:16]
    if not _is_set(c, spawner, "gpu_queue"):
        c.VGPUMixin.gpu_queue = True
    scopes = {
        READ_SCOPE: {"description": "See the hub's GPUs, whose slices are on them, and everybody's GPU quotas"},
        WRITE_SCOPE: {"description": "Change GPU quotas and running slices, and stop servers with a slice"},
    }
    c.JupyterHub.custom_scopes = scopes | (_get(c, "JupyterHub", "custom_scopes", {}) or {})
    c.JupyterHub.services = [*_list(c, "services"), _service(c, spawner, port or _free_port())]
    queue = _trait(c, spawner, "gpu_queue")
    roles = [{"name": SERVICE, "services": [SERVICE], "scopes": _SERVICE_SCOPES + (_QUEUE_SCOPES if queue else [])}]
    roles.append(
        {
            "name": ADMIN_ROLE,
            "users": sorted({*admins, *(_get(c, "Authenticator", "admin_users", set()) or ())}),
            "groups": sorted(admin_groups),
            "scopes": [ACCESS_SCOPE, READ_SCOPE, WRITE_SCOPE],
        }
    )
    minutes = _trait(c, spawner, "gpu_idle_minutes")
    if minutes is not None:
        rule = IdleRule.after(minutes, _trait(c, spawner, "gpu_idle_action"))
        if rule.action is Action.SERVER:
            culler = _idle_culler(_nodes(c, spawner), rule.seconds)
            c.JupyterHub.services = [*_list(c, "services"), culler]
            roles.append({"name": IDLE_SERVICE, "services": [IDLE_SERVICE], "scopes": _IDLE_SCOPES})
    mine = _list(c, "load_roles")
    c.JupyterHub.load_roles = [*(_with_access(mine) if queue else mine), *roles]


def _with_access(roles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every user sees the own place in the queue: the hub's role `user` may open the service's pages."""
    own = next((role for role in roles if role["name"] == USER_ROLE), None)
    if own is None:
        return [{"name": USER_ROLE, "scopes": ["self", ACCESS_SCOPE]}, *roles]
    more = own | {"scopes": [*own.get("scopes", ["self"]), ACCESS_SCOPE]}
    return [more if role is own else role for role in roles]


def _service(c: Config, spawner: type[VGPUMixin], port: int) -> dict[str, Any]:
    slices = _trait(c, spawner, "gpu_slices") or []
    settings = Settings(
        db_url=_trait(c, spawner, "vgpu_db_url"),
        nodes=as_settings(_nodes(c, spawner)),
        hub=_trait(c, spawner, "vgpu_hub"),
        limits=_limits(c, spawner),
        slices=[slice_key(quota) for quota in all_slices(slices, Policy.HARD)],
        hours=_trait(c, spawner, "gpu_hours"),
        most_hours=_trait(c, spawner, "gpu_hours_ceiling"),
        window=_trait(c, spawner, "gpu_hours_window"),
        measure=_trait(c, spawner, "gpu_hours_of"),
        grace=_trait(c, spawner, "gpu_hours_grace"),
        warnings=_trait(c, spawner, "gpu_hours_warnings"),
        end=_trait(c, spawner, "gpu_hours_end"),
        queue=_trait(c, spawner, "gpu_queue"),
    )
    _ = settings.bounds  # what is wrong is said now, not by each server
    return {
        "name": SERVICE,
        "url": f"http://127.0.0.1:{port}",
        "command": [sys.executable, "-m", "jupyter_vgpu_spawner.service"],
        "environment": settings.as_environment() | _python_path(),
        "oauth_client_allowed_scopes": [READ_SCOPE, WRITE_SCOPE],
        "oauth_no_confirm": True,
    }


def _nodes(c: Config, spawner: type[VGPUMixin]) -> tuple[NodeConfig, ...]:
    """What is wrong with them is said now, not by each server."""
    named, socket = _trait(c, spawner, "vgpu_nodes"), _trait(c, spawner, "vgpu_socket")
    nodes = parse_nodes(named or {}, socket, has_engines=spawner.has_engines)
    for node in nodes:
        node.check_files()
    if _get(c, "JupyterHub", "internal_ssl") and any(node.docker for node in nodes):
        raise ValueError("internal_ssl brings its certificates to one machine: with others in vgpu_nodes leave it out")
    return nodes


def _idle_culler(nodes: Iterable[NodeConfig], seconds: float) -> dict[str, Any]:
    every = max(1, round(min(60, seconds / 2)))
    config = Path(__file__).with_name("idle_culler_config.py")
    arguments = [f"--config={config}", f"--timeout={max(1, round(seconds))}", f"--cull-every={every}"]
    values = json.dumps({"nodes": as_settings(nodes), "seconds": seconds})
    return {
        "name": IDLE_SERVICE,
        "command": [sys.executable, "-m", "jupyterhub_idle_culler", *arguments],
        "environment": {IDLE_VARIABLE: values} | _python_path(),
    }


def _python_path() -> dict[str, str]:
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}


def _limits(c: Config, spawner: type[VGPUMixin]) -> dict[str, Any] | None:
    """None where one of them is computed for each user."""
    found = {name: _trait(c, spawner, trait) for name, trait in _LIMITS.items()}
    return None if any(callable(value) for value in found.values()) else found


def _spawner_class(name: Any) -> type[VGPUMixin]:
    """As JupyterHub finds it: an entry point's name, a dotted name, or the class itself."""
    if isinstance(name, str):
        known = {point.name: point for point in entry_points(group="jupyterhub.spawners")}
        name = known[name].load() if name in known else import_item(name)
    if not (isinstance(name, type) and issubclass(name, VGPUMixin)):
        own = "vgpu-docker, vgpu-local, vgpu-simple"
        raise ValueError(f"spawner_class={name!r} gives no GPU slices: take {own}, or a class with VGPUMixin as a base")
    return name


def _trait(c: Config, spawner: type[VGPUMixin], name: str) -> Any:
    """As the spawner will have it: the config of the nearest class goes first, then the class' own default."""
    own = spawner.class_traits()[name].default()
    for cls in spawner.mro():
        if cls.__name__ in c and name in c[cls.__name__]:
            return _get(c, cls.__name__, name, own)
    return own


def _say(c: Config, spawner: type[VGPUMixin], trait: str, argument: str, value: Any) -> None:
    """What an argument says, as a trait. Raises ValueError where the config has the trait already."""
    if value is None:
        return
    if _is_set(c, spawner, trait):
        raise ValueError(
            f"{trait} is said twice: by setup_vgpu's {argument}={value!r} and by the trait, "
            f"{_trait(c, spawner, trait)!r}; leave one out"
        )
    setattr(c.VGPUMixin, trait, value)


def _is_set(c: Config, spawner: type[VGPUMixin], name: str) -> bool:
    return any(cls.__name__ in c and name in c[cls.__name__] for cls in spawner.mro())


def _get(c: Config, section: str, name: str, initial: Any = None) -> Any:
    """What the config says, or None. initial: what there is to add to, where it only adds."""
    value = c[section].get(name) if section in c else None
    return value.get_value(initial) if isinstance(value, LazyConfigValue) else value


def _list(c: Config, name: str) -> list[Any]:
    return list(_get(c, "JupyterHub", name, []) or [])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
