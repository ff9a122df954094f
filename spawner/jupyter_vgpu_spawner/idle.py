"""Servers that hold a GPU and do nothing with it, for jupyterhub-idle-culler. A working job is never touched."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from jupyter_vgpu.client import DaemonError, tenant_path

from .fleet import Fleet
from .nodes import NODE_KEY, ONLY, TENANT_KEY, NodeConfig

log = logging.getLogger("vgpu.idle")

VARIABLE = "JUPYTER_VGPU_IDLE"
Arbiter = Callable[..., Awaitable[bool]]


def is_idle(view: Mapping[str, Any], now: float, *, quiet: bool, seconds: float) -> bool:
    """Nothing was launched for so long, and GPU memory is held or the user is away too. Pure.

    view: a tenant as vgpud describes it. now: seconds since 1970. quiet: the server itself was inactive for its limit.
    """
    activity = view["activity"]
    if activity["busy"] or now - activity["last_active"] < seconds:
        return False
    return quiet or view["usage"]["memory"] > 0


def arbiter(nodes: Sequence[NodeConfig], seconds: float) -> Arbiter:
    """For `c.IdleCuller.cull_arbiter_hook`: ends servers whose slice is idle for so long, and no others.

    The culler's service needs the scope `admin:server_state`, for the state says which slice is the server's.
    """
    fleet = Fleet(nodes)

    async def decide(inactive: timedelta | None, inactive_limit: float, server: Mapping[str, Any]) -> bool:
        state = server.get("state") or {}
        tenant = state.get(TENANT_KEY)
        if not tenant:
            return False  # no slice: that is for the hub's other cullers
        try:
            view = await fleet.request(fleet.known_as(state.get(NODE_KEY, ONLY)), "GET", tenant_path(tenant))
        except DaemonError as error:  # what can't be looked at is not ended
            log.warning("server %s is left alone: %s", server.get("url"), error)
            return False
        quiet = inactive is not None and inactive.total_seconds() >= inactive_limit
        return is_idle(view, time.time(), quiet=quiet, seconds=seconds)

    return decide


def arbiter_from_environment() -> Arbiter:
    """As `setup_vgpu` says."""
    values = json.loads(os.environ[VARIABLE])
    return arbiter([NodeConfig(**node) for node in values["nodes"]], values["seconds"])
