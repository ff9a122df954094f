"""One hub, two nodes: slices go to either, a node that is away takes nobody with it, and no slice is left behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import Node, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from hub import Admin, Hub, with_service
from test_queue import choose

GIB = 1 << 30
ORPHAN_GONE_S = 100  # a minute without a server, and the service's ten seconds
CONFIG = """
c.VGPUMixin.gpu_mem_limit = "6G"
c.VGPUMixin.gpu_slices = [{{"memory": "1G", "cores": 25}}, {{"memory": "4G", "cores": 50}}, {{"memory": "6G", "cores": 50}}]
c.Authenticator.allowed_users = {{"alice", "bob", "eve", "dean"}}
c.JupyterHub.cleanup_servers = False
c.JupyterHub.cleanup_proxy = False
c.VGPUMixin.vgpu_nodes = {{"anna": {{"vgpud": "{anna}"}}, "berta": {{"vgpud": "{berta}"}}}}
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Node, Node]]:
    """anna with 8 GiB, berta with 6."""
    anna, berta = (
        Node("--emulate", f"--emulated-memory={size}", "--NodeApp.allow_shim_tier=False") for size in ("8G", "6G")
    )
    yield anna, berta
    anna.stop()
    berta.stop()


@pytest.fixture(scope="module")
def hub(pair: tuple[Node, Node]) -> Iterator[Hub]:
    anna, berta = pair
    made = with_service(anna, CONFIG.format(anna=anna.client.where, berta=berta.client.where, root=anna.root))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def admin(hub: Hub) -> Admin:
    return Admin(hub)


def names(node: Node) -> list[str]:
    return sorted(tenant["name"] for tenant in node.client.request("GET", "/api/tenants")["tenants"])


def test_slices_go_to_the_emptiest_node_and_are_seen_changed_and_ended_there(
    hub: Hub, admin: Admin, pair: tuple[Node, Node]
) -> None:
    anna, berta = pair
    alice, bob = hub.user("alice"), hub.user("bob")
    alice.spawn("4GiB-50")
    bob.spawn("1GiB-25")
    assert (names(anna), names(berta)) == (["alice/"], ["bob/"])
    page = admin.page()
    assert "anna, GPU 0:" in page
    assert "berta, GPU 0:" in page
    where = {server["name"]: server["node"] for user in ("alice", "bob") for server in admin.person(user)["servers"]}
    assert where == {"alice/": "anna", "bob/": "berta"}
    assert admin.post("edit", user="bob", cores="10").ok
    wait_until(lambda: berta.show("bob%2F")["quota"]["cores"] == 10, 5, "berta follows")
    admin.post("edit", user="bob")
    # after the hub was killed each is found where it is
    hub.crash()
    hub.start()
    assert bob.model()["servers"][""]["ready"]
    hub.user("bob").stop()
    hub.user("alice").stop()
    assert (names(anna), names(berta)) == ([], [])


def test_maintenance_is_of_one_node_or_of_all(hub: Hub, pair: tuple[Node, Node]) -> None:
    admin = Admin(hub)
    anna, berta = pair
    try:
        assert "on anna is told" in admin.post("maintenance", message="New card", closed="1", node="anna").text
        assert "Maintenance of anna, no new slices: New card" in admin.page()
        alice = hub.user("alice")
        alice.spawn("1GiB-25")  # anna is the emptier one
        assert (names(anna), names(berta)) == ([], ["alice/"])
        assert (
            "no node &#39;carla&#39;; it has: anna, berta" in admin.post("maintenance", message="x", node="carla").text
        )
        assert admin.post("maintenance", message="Both", closed="1").ok
        assert "Both" in hub.user("bob").spawn_page()
        alice.stop()
    finally:
        for node in ("anna", "berta"):
            admin.post("maintenance", over="1", node=node)
    assert "Maintenance of" not in admin.page()
    audit = admin.get("audit.csv").text
    assert "dean,anna,maintenance,,New card (no new slices)" in audit
    assert "dean,berta,maintenance,,over" in audit


def test_who_waits_gets_what_becomes_free_on_any_node(hub: Hub, pair: tuple[Node, Node]) -> None:
    anna, berta = pair
    blocks = [(node, node.tenant("5G", 50, "somebody")) for node in pair]
    alice = hub.user("alice")
    assert choose(alice, "4GiB-50").url == f"{hub.url}/services/vgpu/queue"
    node, block = blocks.pop()
    node.client.request("DELETE", f"/api/tenants/{block['id']}")
    wait_until(lambda: names(berta) == ["alice/"], 30, "alice's turn")
    wait_until(lambda: alice.model()["servers"].get("", {}).get("ready"), 60, "the server")
    wait_until(lambda: Admin(hub).get("api/queue").json()["queue"] == [], 10, "nobody waits")
    alice.stop()
    anna.client.request("DELETE", f"/api/tenants/{blocks[0][1]['id']}")


def test_a_node_that_is_away_takes_nobody_with_it_and_its_slices_end_when_it_is_back(
    hub: Hub, pair: tuple[Node, Node]
) -> None:
    anna, berta = pair
    admin = Admin(hub)
    alice, bob, eve = hub.user("alice"), hub.user("bob"), hub.user("eve")
    alice.spawn("4GiB-50")
    bob.spawn("4GiB-50")
    assert (names(anna), names(berta)) == (["alice/"], ["bob/"])
    berta.kill()
    page = admin.page()
    assert "Node berta: the GPU node daemon does not answer" in page
    assert "anna, GPU 0:" in page
    eve.spawn("1GiB-25")
    assert names(anna) == ["alice/", "eve/"]
    bob.stop()  # nobody there hears that the slice has ended
    bob.spawn("1GiB-25")  # and the next is on the other
    assert names(anna) == ["alice/", "bob/", "eve/"]
    berta.start()
    assert names(berta) == ["bob/"]
    wait_until(lambda: names(berta) == [], ORPHAN_GONE_S, "the old slice is removed")
    assert names(anna) == ["alice/", "bob/", "eve/"]
    for user in (alice, bob, eve):
        user.stop()
    assert names(anna) == []
