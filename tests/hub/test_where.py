"""Slices that ask for a model of GPU, and for nobody else on it, on a node with two."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import Node, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from hub import Admin, Hub, with_service
from test_queue import choose, page_of, queue

CONFIG = """
c.VGPUMixin.gpu_mem_limit = "4G"
c.VGPUMixin.gpu_core_limit = 100
c.Authenticator.allowed_users = {"alice", "bob", "eve", "dean"}
c.JupyterHub.load_groups = {
    "wrong": {"users": [], "properties": {"vgpu": {"slices": ["nope"]}}},
    "trusted": {"users": ["bob"], "properties": {"vgpu": {"slices": ["1GiB-25-research", "1GiB-25-MPS"]}}},
}
c.VGPUMixin.gpu_slices = [
    {"memory": "1G", "cores": 25},
    {"memory": "1G", "cores": 25, "model": "research"},
    {"memory": "4G", "cores": 100, "model": "device 0", "exclusive": True},
    {"memory": "1G", "cores": 25, "model": "B200"},
    {"memory": "1G", "cores": 25, "model": "MPS"},
]
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


@pytest.fixture
def two_gpus() -> Iterator[Node]:
    made = Node("--emulate", "--emulated-memory=8G", "--emulated-gpus=2", "--NodeApp.gpu_labels={'1': ['research']}")
    yield made
    made.stop()


@pytest.fixture
def hub(two_gpus: Node) -> Iterator[Hub]:
    made = with_service(two_gpus, CONFIG)
    yield made
    made.stop()


def test_each_goes_where_it_asks_to_and_who_is_alone_stays_alone(hub: Hub, two_gpus: Node) -> None:
    alice, bob, eve, admin = hub.user("alice"), hub.user("bob"), hub.user("eve"), Admin(hub)
    bob.spawn("1GiB-25-research")
    assert two_gpus.show("bob%2F")["gpu"]["index"] == 1
    two_gpus.tenant("1G", 25, "somebody", gpu="0")
    page = alice.spawn_page()
    assert "4 GiB of GPU memory, 100 % of its compute, on device 0, with nobody else on it" in page
    assert "each GPU that is large enough is in use by others; you would wait in the queue" in page
    assert "no GPU here is called &#39;B200&#39;" in page
    assert choose(alice, "4GiB-100-device_0-exclusive").status_code == 200
    assert "on device 0, with nobody else on it" in page_of(alice)
    assert [each["quota"]["exclusive"] for each in queue(admin)] == [True]
    assert admin.person("bob")["slices"] == ["1GiB-25-research", "1GiB-25-MPS"]
    assert re.search(r"\), only 1GiB-25-research, 1GiB-25-MPS \(group\)", admin.page())
    eve.spawn("1GiB-25")  # the GPU that alice waits for is kept for her
    assert two_gpus.show("eve%2F")["gpu"]["index"] == 1
    two_gpus.client.request("DELETE", "/api/tenants/somebody")
    wait_until(lambda: alice.model()["servers"].get("", {}).get("ready"), 60, "alice's turn comes")
    assert two_gpus.show("alice%2F")["gpu"]["index"] == 0
    assert admin.person("alice")["servers"][0]["quota"]["exclusive"] is True
    assert "1 slice, with nobody else on it" in admin.page("live")
    assert "group wrong: slices: there is no &#39;nope&#39;; this hub has: 1GiB-25, " in admin.page()
    eve.stop()
    eve.spawn("1GiB-25")
    assert two_gpus.show("eve%2F")["gpu"]["index"] == 1
    # another quota of hers leaves the slice where it is
    admin.post("edit", user="alice", memory="2G")
    wait_until(lambda: two_gpus.show("alice%2F")["quota"]["memory"] == 2 << 30, 20, "it follows her quota")
    assert two_gpus.show("alice%2F")["quota"]["exclusive"] is True
    for user in (alice, bob, eve):
        user.stop()


def test_a_slice_under_mps_is_for_the_group_that_is_named_for_it(hub: Hub, two_gpus: Node) -> None:
    alice, bob = hub.user("alice"), hub.user("bob")
    assert "1GiB-25-MPS" in bob.spawn_page()
    assert "MPS" not in alice.spawn_page()
    headers = {"X-XSRFToken": alice._xsrf("/hub/")}
    url = f"{hub.url}/hub/api/users/alice/server"
    answer = alice.session.post(url, json={"gpu_slice": "1GiB-25-MPS"}, headers=headers, timeout=60)
    assert (answer.status_code, "is not one of yours" in answer.json()["message"]) == (400, True)
    with pytest.raises(AssertionError, match="no GPU here is called &#39;MPS&#39;"):  # and there is none on this node
        bob.spawn("1GiB-25-MPS")
    assert two_gpus.client.request("GET", "/api/tenants")["tenants"] == []


SHARES = """
c.VGPUMixin.gpu_mem_limit = "4G"
c.VGPUMixin.gpu_core_limit = 50
c.Authenticator.allowed_users = {"alice", "bob", "eve", "dean"}
c.JupyterHub.load_groups = {
    "large": {"users": ["alice", "eve"], "properties": {"vgpu": {"share": 1}}},
    "small": {"users": ["bob"]},
}
c.VGPUMixin.gpu_slices = [{"memory": "1G", "cores": 25}, {"memory": "4G", "cores": 50}]
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


def test_whose_group_holds_little_goes_before_who_asked_earlier(node: Node) -> None:
    hub = with_service(node, SHARES)
    try:
        alice, bob, eve, admin = (*map(hub.user, ("alice", "bob", "eve")), Admin(hub))
        eve.spawn("4GiB-50")
        node.tenant("4G", 25, "somebody")
        for user in (alice, bob):
            choose(user, "1GiB-25")
        assert [each["user"] for each in queue(admin)] == ["bob", "alice"]
        assert "You are number 1 of those who wait" in page_of(bob)
        assert "You are number 2 of those who wait" in page_of(alice)
        node.client.request("DELETE", "/api/tenants/somebody")
        for user in (bob, alice):  # now there is room for both
            wait_until(lambda user=user: user.model()["servers"].get("", {}).get("ready"), 60, "the turn comes")
        for user in (alice, bob, eve):
            user.stop()
    finally:
        hub.stop()


PARTS = """
c.VGPUMixin.gpu_mem_limit = "4G"
c.VGPUMixin.gpu_core_limit = 50
c.Authenticator.allowed_users = {"alice", "bob", "eve", "dean"}
c.VGPUMixin.gpu_slices = [{"memory": "1G", "cores": 25}, {"memory": "1G", "cores": 14, "model": "MIG 1g.1gb"}]
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""

TOTAL = """
from cuda.bindings import driver
from cuda.core import Device
Device(0).set_current()
print(driver.cuMemGetInfo()[2] >> 20, Device(0).name)
"""


@pytest.fixture
def hub_of_parts(divided: Node) -> Iterator[Hub]:
    made = with_service(divided, PARTS)
    yield made
    made.stop()


def test_a_part_of_a_gpu_is_one_users_and_the_next_waits_for_it(hub_of_parts: Hub, divided: Node) -> None:
    alice, bob, eve, admin = (*map(hub_of_parts.user, ("alice", "bob", "eve")), Admin(hub_of_parts))
    key = "1GiB-14-MIG_1g.1gb"
    page = alice.spawn_page()
    assert "1 GiB of GPU memory, 14 % of its compute, on MIG 1g.1gb" in page
    assert "Emulated vGPU device 1 MIG 1g.1gb: up to 1 GiB and 14 % of compute free on one" in page
    for user in (alice, bob):
        user.spawn(key)
    kernel = alice.open_notebook("work.ipynb")["kernel"]["id"]
    assert alice.execute(kernel, TOTAL) == "1024 Emulated vGPU device 1 MIG 1g.1gb\n"
    view = alice.get("vgpu/slice")
    assert (view["tier"], view["gpu"]["mig"], view["usage"]["memory"]) == ("shim", True, 64 << 20)
    assert "each GPU that is large enough is in use by others; you would wait in the queue" in eve.spawn_page()
    assert choose(eve, key).status_code == 200
    assert [each["user"] for each in queue(admin)] == ["eve"]
    assert "1 slice, with nobody else on it" in admin.page("live")
    bob.stop()
    wait_until(lambda: eve.model()["servers"].get("", {}).get("ready"), 60, "eve's turn comes")
    assert divided.show("eve%2F")["gpu"]["mig"] is True
    bob.spawn("1GiB-25")
    assert (divided.show("bob%2F")["gpu"]["index"], divided.show("bob%2F")["gpu"]["mig"]) == (0, False)
    for user in (alice, bob, eve):
        user.stop()
