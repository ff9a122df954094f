"""`setup_vgpu(c)`: spawner, service, roles and scopes in one line of jupyterhub_config.py."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from traitlets.config import Config
from traitlets.config.loader import LazyConfigValue

from jupyter_vgpu.paths import ADMIN_SOCKET, default_run_dir

from .idle import VARIABLE as IDLE_VARIABLE
from .service.settings import READ_SCOPE, WRITE_SCOPE, Settings

SERVICE = "vgpu"
IDLE_SERVICE = "vgpu-idle"
ADMIN_ROLE = "vgpu-admin"
# What the service asks the hub for: users with groups and servers, groups' properties, and to stop a server.
_SERVICE_SCOPES = ["list:users", "read:users:groups", "read:servers", "list:groups", "read:groups", "delete:servers"]
_IDLE_SCOPES = ["list:users", "read:users:activity", "read:servers", "admin:server_state", "delete:servers"]
_LIMITS = {
    "memory": ("gpu_mem_limit", None),
    "cores": ("gpu_core_limit", 100.0),
    "policy": ("gpu_policy", "hard"),
    "mem_ceiling": ("gpu_mem_ceiling", None),
    "core_ceiling": ("gpu_core_ceiling", None),
    "policy_ceiling": ("gpu_policy_ceiling", None),
    "hours": ("gpu_hours", None),
}


def setup_vgpu(
    c: Config,
    *,
    admins: Collection[str] = (),
    admin_groups: Collection[str] = (),
    db_url: str | None = None,
    port: int | None = None,
    gpu_idle_minutes: float | None = None,
) -> None:
    """Give a hub GPU slices: call it last in jupyterhub_config.py, after the traits that you set.

    What is set already stays: a spawner class, services, roles and scopes of your own.

    Args:
        c: the hub's config.
        admins: users who may see and change all on the service's page; those of `c.Authenticator.admin_users` may too.
        admin_groups: hub groups whose members may.
        db_url: the database with users' quotas, as SQLAlchemy writes it; by default a SQLite file beside the hub.
        port: of the service, on 127.0.0.1; by default a free one, chosen when the hub starts.
        gpu_idle_minutes: stop servers that hold GPU memory and launched nothing for so long, by jupyterhub-idle-culler.
            A working job is never touched. None: nothing is stopped.

    Raises:
        QuotaError: for a limit that is none. ValueError: where it was called before, or for minutes that are none.
    """
    if any(service.get("name") == SERVICE for service in _list(c, "services")):
        raise ValueError(f"the hub's config has a service named {SERVICE!r} already: call setup_vgpu once")
    if not _get(c, "JupyterHub", "spawner_class"):
        c.JupyterHub.spawner_class = "vgpu-docker"
    if not _get(c, "VGPUMixin", "vgpu_db_url"):
        c.VGPUMixin.vgpu_db_url = db_url or f"sqlite:///{Path.cwd() / 'vgpu.sqlite'}"
    if not _get(c, "VGPUMixin", "vgpu_socket"):
        c.VGPUMixin.vgpu_socket = str(default_run_dir() / ADMIN_SOCKET)
    scopes = {
        READ_SCOPE: {"description": "See the hub's GPUs, whose slices are on them, and everybody's GPU quotas"},
        WRITE_SCOPE: {"description": "Change GPU quotas and running slices, and stop servers with a slice"},
    }
    c.JupyterHub.custom_scopes = scopes | (_get(c, "JupyterHub", "custom_scopes") or {})
    c.JupyterHub.services = [*_list(c, "services"), _service(c, port or _free_port())]
    roles = [{"name": SERVICE, "services": [SERVICE], "scopes": _SERVICE_SCOPES}]
    roles.append(
        {
            "name": ADMIN_ROLE,
            "users": sorted({*admins, *(_get(c, "Authenticator", "admin_users") or ())}),
            "groups": sorted(admin_groups),
            "scopes": [f"access:services!service={SERVICE}", READ_SCOPE, WRITE_SCOPE],
        }
    )
    if gpu_idle_minutes is not None:
        c.JupyterHub.services = [*_list(c, "services"), _idle_culler(c, gpu_idle_minutes)]
        roles.append({"name": IDLE_SERVICE, "services": [IDLE_SERVICE], "scopes": _IDLE_SCOPES})
    c.JupyterHub.load_roles = [*_list(c, "load_roles"), *roles]


def _service(c: Config, port: int) -> dict[str, Any]:
    settings = Settings(
        db_url=c.VGPUMixin.vgpu_db_url,
        socket=c.VGPUMixin.vgpu_socket,
        limits=_limits(c),
        window=_limit(c, "gpu_hours_window") or "rolling",
        measure=_limit(c, "gpu_hours_of") or "held",
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


def _idle_culler(c: Config, minutes: float) -> dict[str, Any]:
    if minutes <= 0:
        raise ValueError(f"gpu_idle_minutes={minutes} is no time: give minutes above 0, or None to stop nothing")
    seconds = minutes * 60
    every = max(1, round(min(60, seconds / 2)))
    config = Path(__file__).with_name("idle_culler_config.py")
    arguments = [f"--config={config}", f"--timeout={max(1, round(seconds))}", f"--cull-every={every}"]
    values = json.dumps({"socket": c.VGPUMixin.vgpu_socket, "seconds": seconds})
    return {
        "name": IDLE_SERVICE,
        "command": [sys.executable, "-m", "jupyterhub_idle_culler", *arguments],
        "environment": {IDLE_VARIABLE: values} | _python_path(),
    }


def _python_path() -> dict[str, str]:
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}


def _limits(c: Config) -> dict[str, Any] | None:
    """None where one of them is computed for each user."""
    found = {name: _limit(c, trait, default) for name, (trait, default) in _LIMITS.items()}
    try:
        json.dumps(found)
    except TypeError:
        return None
    return found


def _limit(c: Config, trait: str, default: Any = None) -> Any:
    """As set on the spawner class that is used, or on the mixin; the class goes first, as traitlets has it."""
    for name in [name for name in c if name.startswith("VGPU") and name != "VGPUMixin"] + ["VGPUMixin"]:
        value = _get(c, name, trait)
        if value is not None:
            return value
    return default


def _get(c: Config, section: str, name: str) -> Any:
    """What the config says, or None."""
    value = c[section].get(name) if section in c else None
    return value.get_value(set()) if isinstance(value, LazyConfigValue) else value


def _list(c: Config, name: str) -> list[Any]:
    value = c.JupyterHub.get(name)
    return list(value.get_value([]) if isinstance(value, LazyConfigValue) else value or [])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
