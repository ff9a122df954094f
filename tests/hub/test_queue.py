"""The queue on a real JupyterHub: whoever finds no room waits, nobody overtakes, and the server starts by itself."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from support.node import Node, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from hub import Admin, Hub, with_service
from hubclient import HubUser
from jupyter_vgpu_spawner.service.dispatcher import CALL_S
from test_service import service_pid

GIB = 1 << 30
CONFIG = """
import sys
def limit(spawner):
    return "a lot" if spawner.user.name == "zoe" else "4G"
def fails_for_eve(spawner):
    if spawner.user.name == "eve":
        spawner.cmd = ["/bin/false"]
c.Spawner.pre_spawn_hook = fails_for_eve
c.VGPUMixin.gpu_mem_limit = limit
c.VGPUMixin.gpu_policy_ceiling = "burst"
c.JupyterHub.allow_named_servers = False
c.JupyterHub.cleanup_servers = False
c.JupyterHub.cleanup_proxy = False
c.Authenticator.allowed_users = {"alice", "bob", "eve", "zoe", "dean"}
c.VGPUMixin.gpu_slices = [{"memory": "1G", "cores": 25}, {"memory": "4G", "cores": 50}]
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


@pytest.fixture
def other(shared_node: Node) -> Iterator[dict[str, Any]]:
    """Somebody's slice that leaves 2 GiB and half of the compute."""
    made = shared_node.tenant("6G", 50, "somebody")
    yield made
    remove(shared_node, made)


@pytest.fixture
def admin(hub: Hub) -> Iterator[Admin]:
    yield Admin(hub)
    made = Admin(hub)  # anew, for the hub may be another by now
    for each in [*queue(made), *queue(made)]:  # who waits is told of it first
        made.post("remove", user=each["user"], server=each["server"])
    for name in ("alice", "bob", "eve"):
        user = hub.user(name)
        if user.model()["servers"]:
            user.stop()
        made.post("edit", user=name)


def remove(node: Node, tenant: dict[str, Any]) -> None:
    if any(each["id"] == tenant["id"] for each in node.client.request("GET", "/api/tenants")["tenants"]):
        node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def queue(admin: Admin) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = admin.get("api/queue").json()["queue"]
    return found


def choose(user: HubUser, choice: str) -> requests.Response:
    """Submit the spawn page's form, and go where a browser goes then."""
    user.spawn_page()
    url = f"{user.url}/hub/spawn/{user.name}?_xsrf={user.xsrf('/hub/')}"
    return user.session.post(url, data={"gpu_slice": choice}, timeout=60)


def has_slice(user: HubUser, node: Node, memory: int) -> bool:
    tenants = node.client.request("GET", "/api/tenants")["tenants"]
    mine = [tenant["quota"]["memory"] for tenant in tenants if tenant["name"] == f"{user.name}/"]
    return mine == [memory] and bool(user.model()["servers"].get("", {}).get("ready"))


def page_of(user: HubUser) -> str:
    answer = user.session.get(f"{user.url}/services/vgpu/queue", timeout=30)
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", answer.text))


def in_lab(user: HubUser) -> Any:
    """What the user's server tells JupyterLab of the queue."""
    return user.get("vgpu/slice").get("queue")


def leave(user: HubUser, server: str = "") -> requests.Response:
    url = f"{user.url}/services/vgpu/queue"
    found = re.search(r'data-xsrf="([^"]+)"', user.session.get(url, timeout=30).text)
    form = {"_xsrf": found[1] if found else "", "server": server}
    return user.session.post(f"{url}/leave", data=form, timeout=30)


def test_who_finds_no_room_waits_and_the_server_starts_by_itself(
    hub: Hub, shared_node: Node, admin: Admin, other: dict[str, Any]
) -> None:
    alice = hub.user("alice")
    page = alice.spawn_page()
    assert "2 GiB and 50 % of compute are free; you would wait in the queue" in page
    assert "2 GiB and 50 % of compute free" in page  # by model
    answer = choose(alice, "4GiB-50")
    assert answer.url == f"{hub.url}/services/vgpu/queue"
    assert "You are number 1 of those who wait" in page_of(alice)
    assert "too few servers of this hub have ended" in page_of(alice)

    def place() -> str:
        return re.sub(r"\s+", " ", alice.spawn_page())

    words = "You wait for 4 GiB of GPU memory, 50 % of its compute, as number 1 of those who wait. When the turn comes"
    wait_until(lambda: words in place(), 20, "the spawn page says so too")
    assert not alice.model()["servers"]  # no spawn is held open
    assert [(each["user"], each["number"], each["quota"]["memory"]) for each in queue(admin)] == [("alice", 1, 4 * GIB)]
    assert "Remove alice/ from the queue" in admin.page()
    remove(shared_node, other)
    wait_until(lambda: has_slice(alice, shared_node, 4 * GIB), 40, "the server has started by itself")
    wait_until(lambda: queue(admin) == [], 5, "and waits no more")
    alice.session.get(f"{hub.url}/services/vgpu/queue/live", timeout=30)
    log = hub.log.read_text()
    assert "told to a user: You wait for 4 GiB of GPU memory" in log
    assert "Failed to spawn" not in log  # an error with a traceback for each who waits
    assert "Unhandled user option" not in log
    assert "200 GET /services/vgpu/queue/live" not in log
    assert "Your server is there: open it." in page_of(alice)
    alice.session.get(f"{hub.url}/user/alice/lab", timeout=60).raise_for_status()  # the server's own login
    assert alice.get("vgpu/slice")["quota"]["memory"] == 4 * GIB


def test_nobody_overtakes_those_who_wait(hub: Hub, shared_node: Node, admin: Admin, other: dict[str, Any]) -> None:
    alice, bob = hub.user("alice"), hub.user("bob")
    choose(alice, "4GiB-50")
    assert "others wait for a GPU before you; you would wait in the queue" in bob.spawn_page()
    headers = {"X-XSRFToken": bob.xsrf("/hub/") or ""}
    by_rest = bob.session.post(
        f"{hub.url}/hub/api/users/bob/server", json={"gpu_slice": "1GiB-25"}, headers=headers, timeout=60
    )
    assert (by_rest.status_code, "Others wait for a GPU before you" in by_rest.text) == (409, True)
    choose(bob, "1GiB-25")
    assert "You are number 2 of those who wait" in page_of(bob)
    time.sleep(5)  # the service looked twice
    assert [each["user"] for each in queue(admin)] == ["alice", "bob"]
    assert leave(alice).status_code == 200
    wait_until(lambda: has_slice(bob, shared_node, GIB), 40, "with alice gone there is room for bob")


def test_the_queue_outlives_hub_and_service(hub: Hub, shared_node: Node, admin: Admin, other: dict[str, Any]) -> None:
    alice = hub.user("alice")
    choose(alice, "4GiB-50")
    os.kill(service_pid(shared_node), signal.SIGKILL)
    assert hub.process
    hub.process.kill()
    hub.process.wait()
    hub.start()
    alice = hub.user("alice")
    wait_until(lambda: requests.get(f"{hub.url}/services/vgpu/health", timeout=5).ok, 30, "the service answers")
    assert "You are number 1 of those who wait" in page_of(alice)
    remove(shared_node, other)
    wait_until(lambda: has_slice(alice, shared_node, 4 * GIB), 40, "the server has started by itself")


def test_a_server_without_a_gpu_is_a_way_on_meanwhile(
    hub: Hub, shared_node: Node, admin: Admin, other: dict[str, Any]
) -> None:
    alice = hub.user("alice")
    choose(alice, "4GiB-50")
    alice.spawn("none")
    assert "You are number 1 of those who wait" in page_of(alice)
    wait_until(lambda: in_lab(alice), 20, "JupyterLab knows, too")
    told = in_lab(alice)
    assert told
    assert (told["stage"], told["number"], told["url"]) == ("waiting", 1, "/services/vgpu/queue")
    remove(shared_node, other)
    wait_until(lambda: "stop it, and it starts again with one" in page_of(alice), 20, "she is told")
    wait_until(lambda: (in_lab(alice) or {}).get("until"), 20, "in JupyterLab, too")
    assert in_lab(alice)["until"] == pytest.approx(time.time() + CALL_S, abs=60)
    assert alice.model()["servers"][""]["ready"]  # nobody takes her work away
    bob = hub.user("bob")
    choose(bob, "4GiB-50")  # there is room for both
    wait_until(lambda: has_slice(bob, shared_node, 4 * GIB), 40, "bob's server")
    alice.ask_to_stop()
    wait_until(lambda: has_slice(alice, shared_node, 4 * GIB), 60, "hers starts again, and has what was kept for her")
    assert shared_node.client.request("GET", "/api/boards") == {"boards": []}
    alice.session.get(f"{hub.url}/user/alice/lab", timeout=60).raise_for_status()
    wait_until(lambda: alice.get("vgpu/slice")["queue"] is None, 20, "and nothing is left to tell")


def test_a_board_outlives_hub_and_daemon_and_goes_with_its_server(
    hub: Hub, shared_node: Node, admin: Admin, other: dict[str, Any]
) -> None:
    alice = hub.user("alice")
    choose(alice, "4GiB-50")
    alice.spawn("none")
    (board,) = shared_node.client.request("GET", "/api/boards")["boards"]
    hub.crash()
    shared_node.kill()
    shared_node.start()
    hub.start()
    alice = hub.user("alice")
    alice.session.get(f"{hub.url}/user/alice/lab", timeout=60).raise_for_status()
    wait_until(lambda: (in_lab(alice) or {}).get("number") == 1, 30, "it is told again")
    assert [each["id"] for each in shared_node.client.request("GET", "/api/boards")["boards"]] == [board["id"]]
    assert leave(alice).status_code == 200
    wait_until(lambda: in_lab(alice) is None, 20, "she waits no more, and reads so")
    alice.stop()
    assert shared_node.client.request("GET", "/api/boards") == {"boards": []}


def test_a_server_that_can_not_start_says_why(hub: Hub, shared_node: Node, admin: Admin, other: dict[str, Any]) -> None:
    alice = hub.user("alice")
    choose(alice, "4GiB-50")
    admin.post("edit", user="alice", memory="2G")
    remove(shared_node, other)
    wait_until(lambda: "Your server did not start" in page_of(alice), 30, "she is told")
    assert "GPU slice &#39;4GiB-50&#39; is not one of yours: choose from 1GiB-25, none" in page_of(alice)
    assert "Dismiss" in page_of(alice)
    assert leave(alice).status_code == 200
    assert "You wait for nothing" in page_of(alice)


def test_who_asks_for_less_keeps_the_place(hub: Hub, admin: Admin, shared_node: Node) -> None:
    full = shared_node.tenant("8G", 100, "somebody")
    try:
        alice, bob = hub.user("alice"), hub.user("bob")
        choose(alice, "4GiB-50")
        choose(bob, "1GiB-25")
        choose(alice, "1GiB-25")
        assert "You are number 1 of those who wait" in page_of(alice)
        choose(alice, "4GiB-50")  # for more she waits anew
        assert "You are number 2 of those who wait" in page_of(alice)
        for user in (alice, bob):
            leave(user)
    finally:
        remove(shared_node, full)


def test_an_admin_takes_somebody_out_and_it_is_noted(hub: Hub, admin: Admin, other: dict[str, Any]) -> None:
    alice = hub.user("alice")
    choose(alice, "4GiB-50")
    assert "alice/ waits no more." in admin.post("remove", user="alice", server="").text
    assert "Your server did not start with a GPU: an admin took it out of the queue." in page_of(alice)

    def noted() -> str:
        return admin.page("audit").split("<tbody>")[1].split("</tr>")[0]

    for word in ("dean", "alice/", "queue", "waiting", "removed"):
        assert word in noted()
    admin.post("remove", user="alice", server="")
    assert "You wait for nothing" in page_of(alice)
    assert "ended" in noted()
    again = admin.post("remove", user="alice", server="")
    assert (again.status_code, "alice/ does not wait for a GPU" in again.text) == (404, True)


def test_a_user_sees_and_moves_the_own_place_alone(hub: Hub, admin: Admin, other: dict[str, Any]) -> None:
    alice, eve = hub.user("alice"), hub.user("eve")
    choose(alice, "4GiB-50")
    assert "alice" not in page_of(eve)
    assert leave(eve).status_code == 404
    url = f"{hub.url}/services/vgpu/queue"
    # a page of somebody's server, with alice's cookies and without her token
    for path in ("/live", "/leave", ""):
        headers = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        method = "POST" if path == "/leave" else "GET"
        answer = alice.session.request(method, url + path, headers=headers, timeout=30, allow_redirects=False)
        assert answer.status_code == (403 if path == "/leave" else answer.status_code)
        assert "You are number" not in answer.text
        stranger = requests.request(method, url + path, timeout=30, allow_redirects=False)
        assert stranger.status_code in (302, 403)
    assert [each["user"] for each in queue(admin)] == ["alice"]


def test_a_daemon_that_is_away_loses_nobody(hub: Hub, admin: Admin, shared_node: Node, other: dict[str, Any]) -> None:
    alice = hub.user("alice")
    choose(alice, "4GiB-50")
    shared_node.kill()
    wait_until(lambda: "It is not lost." in page_of(alice), 10, "the page says so")
    shared_node.start()
    wait_until(lambda: "You are number 1" in page_of(alice), 20, "her place is known again")
    remove(shared_node, other)
    wait_until(lambda: has_slice(alice, shared_node, 4 * GIB), 40, "the server has started by itself")


def test_a_server_that_ends_after_it_got_its_slice_says_so(
    hub: Hub, shared_node: Node, admin: Admin, other: dict[str, Any]
) -> None:
    eve = hub.user("eve")
    choose(eve, "4GiB-50")
    remove(shared_node, other)
    wait_until(
        lambda: "it was started with the GPU and ended before it was ready" in page_of(eve),
        120,
        "she is told, after another try",
    )
    wait_until(lambda: not shared_node.client.request("GET", "/api/tenants")["tenants"], 60, "the hub gives up")
    assert [(each["user"], each["stage"]) for each in queue(admin)] == [("eve", "ended")]


def test_a_policy_that_is_changed_meanwhile_keeps_nobody_waiting(
    hub: Hub, shared_node: Node, admin: Admin, other: dict[str, Any]
) -> None:
    alice = hub.user("alice")
    choose(alice, "4GiB-50")
    admin.post("edit", user="alice", policy="burst")
    remove(shared_node, other)
    wait_until(lambda: has_slice(alice, shared_node, 4 * GIB), 40, "the server has started by itself")
    assert shared_node.show("alice/")["quota"]["policy"] == "burst"


def test_a_limit_that_is_none_leaves_the_way_without_a_gpu(hub: Hub) -> None:
    assert "This hub&#39;s GPU settings are wrong" in hub.user("zoe").spawn_page()


def test_named_servers_that_the_hub_does_not_have_take_no_places(hub: Hub, admin: Admin, other: dict[str, Any]) -> None:
    eve = hub.user("eve")
    eve.spawn_page()
    for name in ("x0", "x1"):
        url = f"{hub.url}/hub/spawn/eve/{name}?_xsrf={eve.xsrf('/hub/')}"
        eve.session.post(url, data={"gpu_slice": "4GiB-50"}, timeout=60)
    assert queue(admin) == []


def test_what_ends_while_nothing_is_given_brings_nobodys_turn(
    hub: Hub, admin: Admin, shared_node: Node, other: dict[str, Any]
) -> None:
    with sqlite3.connect(shared_node.root / "vgpu.sqlite") as database:
        database.execute("DELETE FROM vgpu_lifetimes")
        database.executemany("INSERT INTO vgpu_lifetimes (seconds) VALUES (?)", [(60.0,)] * 12)
    alice = hub.user("alice")
    choose(alice, "4GiB-50")
    wait_until(lambda: "The turn comes in about a minute." in page_of(alice), 15, "it is told from what ended before")
    admin.post("maintenance", message="A new card", closed="1")
    try:
        wait_until(lambda: "No new slices are given now: A new card" in page_of(alice), 5, "maintenance is named")
        wait_until(
            lambda: "It may take longer than can be told until the turn comes." in page_of(alice),
            15,
            "and nothing is foretold",
        )
    finally:
        admin.post("maintenance", over="1")


def test_small_slices_go_past_a_large_one_on_other_gpus_only() -> None:
    node = Node("--emulate", "--emulated-memory=8G", "--emulated-gpus=2", "--NodeApp.allow_shim_tier=False")
    try:
        first = node.tenant("1G", 10, "first")
        node.tenant("6G", 10, "second")
        assert first["gpu"]["index"] != node.show("second")["gpu"]["index"]
        more = "c.VGPUMixin.gpu_slices = [{'memory': '1G', 'cores': 25}, {'memory': '8G', 'cores': 50}]\n"
        config = CONFIG.replace('"4G"', '"8G"')
        hub = with_service(node, config.replace("from jupyter_vgpu_spawner", more + "from jupyter_vgpu_spawner"))
        try:
            alice, bob = hub.user("alice"), hub.user("bob")
            choose(alice, "8GiB-50")  # the GPU with 7 GiB free lacks least, and is kept
            bob.spawn("1GiB-25")
            assert node.show("bob/")["gpu"]["index"] == node.show("second")["gpu"]["index"]
            remove(node, first)
            wait_until(lambda: has_slice(alice, node, 8 * GIB), 40, "her turn came with the end of the first")
            alice.stop()
            bob.stop()
        finally:
            hub.stop()
    finally:
        node.stop()
