"""Which servers are ended for holding a GPU and doing nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jupyter_vgpu_spawner.idle import arbiter, is_idle
from jupyter_vgpu_spawner.nodes import ONLY, NodeConfig

NOW = 1_000_000.0


def view(idle_for: float, *, memory: int = 1 << 30, busy: bool = False) -> dict[str, Any]:
    return {"activity": {"busy": busy, "last_active": NOW - idle_for}, "usage": {"memory": memory}}


@pytest.mark.parametrize(
    ("tenant", "quiet", "ends"),
    [
        (view(700), False, True),  # holds memory, launched nothing: though its user types
        (view(700, memory=0), False, False),  # holds nothing, and its user is there
        (view(700, memory=0), True, True),
        (view(500), True, False),  # worked a moment ago: though its user is away
        (view(0, busy=True), True, False),
        (view(9999, busy=True), True, False),  # one long kernel
    ],
)
def test_what_is_idle_ends_and_what_works_does_not(tenant: dict[str, Any], quiet: bool, ends: bool) -> None:
    assert is_idle(tenant, NOW, quiet=quiet, seconds=600) is ends


def test_what_can_not_be_looked_at_is_left_alone(tmp_path: Path) -> None:
    decide = arbiter([NodeConfig(ONLY, str(tmp_path / "nobody.sock"))], 600)
    away = timedelta(days=1)
    server = {"url": "/user/alice/", "state": {"vgpu_tenant": "t"}}
    assert not asyncio.run(decide(inactive=away, inactive_limit=600, server=server))
    assert not asyncio.run(decide(inactive=away, inactive_limit=600, server={"state": None}))
    assert not asyncio.run(decide(inactive=away, inactive_limit=600, server={}))
