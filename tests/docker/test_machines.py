"""A hub with two machines: its own, and one behind a network with its own Docker Engine and GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import Node, wait_until

for folder in ("hub", "docker"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
from engine import Engine  # noqa: E402
from hub import Admin, Hub, with_service  # noqa: E402
from machine import Machine  # noqa: E402
from test_docker import TAKE, containers  # noqa: E402

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

GIB = 1 << 30
CONFIG = """
c.JupyterHub.spawner_class = "vgpu-docker"
c.DockerSpawner.image = "{image}"
c.DockerSpawner.pull_policy = "never"
c.DockerSpawner.volumes = {{"{shared}": "/home/student/shared"}}
c.Spawner.environment = {{"FROM_CONFIG": "yes"}}
c.Spawner.cmd = ["jupyterhub-singleuser"]
c.Spawner.args = []
c.Spawner.start_timeout = 120
c.JupyterHub.hub_ip = "{gateway}"
c.JupyterHub.hub_connect_ip = "{gateway}"
c.JupyterHub.cleanup_servers = False
c.JupyterHub.cleanup_proxy = False
c.Authenticator.allowed_users = {{"alice", "bob", "dean"}}
c.VGPUMixin.vgpu_nodes = {nodes!r}
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


@pytest.fixture(scope="module")
def machine(engine: Engine) -> Iterator[Machine]:
    """The other one, with a larger GPU."""
    made = Machine(engine.image())
    yield made
    made.stop()


@pytest.fixture
def hub(node: Node, engine: Engine, machine: Machine) -> Iterator[Hub]:
    shared = node.root / "shared"
    shared.mkdir()
    (shared / "data.txt").write_text("from the admin")
    nodes = {"here": {"vgpud": node.client.where}, "there": machine.config}
    values = {"image": engine.image(), "shared": shared, "gateway": machine.gateway, "root": node.root}
    made = with_service(node, CONFIG.format(nodes=nodes, **values))
    yield made
    made.stop()
    for container in containers(engine):
        engine.client.api.remove_container(container, force=True)


def names(node: Node) -> list[str]:
    return sorted(tenant["name"] for tenant in node.client.request("GET", "/api/tenants")["tenants"])


def test_servers_run_where_their_slice_is_and_are_held_to_it(
    hub: Hub, node: Node, engine: Engine, machine: Machine
) -> None:
    alice, bob = hub.user("alice"), hub.user("bob")
    alice.spawn("1GiB-25", 180)
    assert (names(node), names(machine.node)) == ([], ["alice/"])
    assert machine.containers() == ["jupyter-alice"]
    ports = machine.client.containers.get("jupyter-alice").attrs["NetworkSettings"]["Ports"]["8888/tcp"]
    assert [port["HostIp"] for port in ports] == [machine.ip]
    kernel = alice.open_notebook("work.ipynb")["kernel"]["id"]
    assert alice.execute(kernel, TAKE) == "30 CUDA_ERROR_OUT_OF_MEMORY 1024 yes from the admin True\n"
    view = alice.get("vgpu/slice")
    assert (view["tier"], view["usage"]["memory"]) == ("guard", GIB)
    bob.spawn("none", 180)  # without a GPU on the first node
    assert len(containers(engine)) == 1
    # changes reach it there, and it is found again by a hub that was killed
    admin = Admin(hub)
    admin.post("edit", user="alice", memory="512M", cores="25")
    wait_until(lambda: alice.get("vgpu/slice")["quota"]["memory"] == GIB // 2, 5, "the quota that was cut")
    hub.crash()
    hub.start()
    alice, bob = hub.user("alice"), hub.user("bob")
    assert alice.model()["servers"][""]["ready"]
    alice.stop()
    bob.stop()
    assert (names(node), names(machine.node)) == ([], [])
    assert (containers(engine), machine.containers()) == ([], [])


def test_a_machine_that_vanishes_takes_its_own_servers_alone(
    hub: Hub, node: Node, engine: Engine, machine: Machine
) -> None:
    alice, bob = hub.user("alice"), hub.user("bob")
    alice.spawn("1GiB-25", 180)
    assert names(machine.node) == ["alice/"]
    machine.vanish()
    try:
        bob.spawn("1GiB-25", 180)
        assert names(node) == ["bob/"]
        assert "Node there: the GPU node daemon does not answer" in Admin(hub).page()
        # it is gone for good: the admin takes it out of the config, and its servers are over
        whole = hub.config.read_text()
        hub.crash()
        hub.config.write_text(
            whole.replace("'there': ", "# 'there': ", 1).replace("\nfrom jupyter", "\n}\nfrom jupyter", 1)
        )
        hub.start()
        alice, bob = hub.user("alice"), hub.user("bob")
        assert bob.model()["servers"][""]["ready"]
        wait_until(lambda: not alice.model()["servers"], 60, "alice's server is over")
        alice.spawn("1GiB-25", 180)
        assert names(node) == ["alice/", "bob/"]
        # and back: what it still has of alice is removed
        hub.crash()
        hub.config.write_text(whole)
    finally:
        machine.come_back()
    hub.start()
    assert names(machine.node) == ["alice/"]
    wait_until(lambda: names(machine.node) == [], 120, "the slice of a server that is elsewhere now")
    assert names(node) == ["alice/", "bob/"]
    alice = hub.user("alice")
    alice.stop()
    assert machine.containers() == ["jupyter-alice"]  # it never heard of it
    alice.spawn("1GiB-25", 180)
    assert names(machine.node) == ["alice/"]
    assert alice.get("vgpu/slice")["tier"] == "guard"  # a new one, in its slice
    alice.stop()
    assert machine.containers() == []
    hub.user("bob").stop()
