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
        assert 'class="alert alert-warning" role="status">You have used 0.0 of 0.001 GPU-hours; 0.0 are left.' in page
        with pytest.raises(AssertionError, match="your GPU-hours are used up"):
            alice.spawn("1GiB-25")
    finally:
        hub.stop()


USED = """
c.Authenticator.allowed_users = {"alice", "dean"}
c.VGPUMixin.gpu_hours = 20
c.VGPUMixin.gpu_hours_of = "used"
c.VGPUMixin.gpu_hours_window = "week"
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""
SPIN = """
import ctypes, time
from cuda.bindings import driver
driver.cuInit(0)
driver.cuCtxSetCurrent(driver.cuDevicePrimaryCtxRetain(0)[1])
buffer = driver.cuMemAlloc(256 << 20)[1]
end = time.monotonic() + 12
while time.monotonic() < end:
    driver.cuMemsetD8(buffer, 1, 256 << 20)
    driver.cuCtxSynchronize()
"""


def test_hours_of_use_count_the_time_on_the_gpu_alone(node: Node) -> None:
    hub = Hub(node, USED.replace("{root}", str(node.root)))
    try:
        alice, admin = hub.user("alice"), Admin(hub)
        alice.spawn("1GiB-25")
        kernel = alice.open_notebook("work.ipynb")["kernel"]["id"]
        wait_until(lambda: admin.person("alice")["hours"]["held"] > 0, 40, "the slice is held")
        assert admin.person("alice")["hours"]["used"] == 0  # and nothing has run
        alice.execute(kernel, SPIN)

        def on_gpu() -> float:
            return float(node.show("alice/")["usage"]["on_gpu_ns"]) / 3.6e12

        wait_until(lambda: admin.person("alice")["hours"]["used"] > 0.9 * on_gpu(), 40, "it is counted")
        used = admin.person("alice")["hours"]["used"]
        assert 0 < used <= on_gpu() * 1.01
        assert "GPU-hours (this week)" in admin.page()
        alice.stop()
        assert f"You have used {used:.1f} of 20 GPU-hours; 20.0 are left." in alice.spawn_page()
    finally:
        hub.stop()
