"""A hub that stops servers whose users' GPU-hours are used up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.node import Node, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from hub import Admin, Hub

CONFIG = """
c.Authenticator.allowed_users = {"alice", "dean"}
c.VGPUMixin.gpu_hours = 0.001
c.VGPUMixin.gpu_hours_grace = 0.0004
c.VGPUMixin.gpu_hours_end = "stop"
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


def test_a_server_is_stopped_when_hours_and_grace_are_used_up(node: Node) -> None:
    hub = Hub(node, CONFIG.replace("{root}", str(node.root)))
    try:
        alice = hub.user("alice")
        alice.spawn("1GiB-25")  # 0.001 GPU-hours are 14 seconds of it
        wait_until(lambda: "" not in alice.model()["servers"], 90, "it is stopped")
        assert node.client.request("GET", "/api/tenants")["tenants"] == []
        admin = Admin(hub)
        assert admin.person("alice")["hours"]["held"] >= 0.0014
        assert "the service, for GPU-hours" in admin.page("audit")
        page = alice.spawn_page()
        assert 'class="alert alert-warning" role="status">You have used 0.0 of 0.001 GPU-hours' in page
        with pytest.raises(AssertionError, match="your GPU-hours are used up"):
            alice.spawn("1GiB-25")
    finally:
        hub.stop()
