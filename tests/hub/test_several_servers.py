"""A user with several servers: together they have as many GPUs as the user may, and no more."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from support.node import Node, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from hub import Admin, Hub
from hubclient import HubUser

GIB = 1 << 30

CONFIG = """
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.cleanup_proxy = False
c.Authenticator.allowed_users = {"alice", "bob", "dean"}
c.VGPUMixin.gpu_count_ceiling = 2
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, admins=["dean"], db_url="sqlite:///{root}/vgpu.sqlite")
"""


@pytest.fixture
def alice(hub: Hub, shared_node: Node) -> Iterator[HubUser]:
    yield hub.user("alice")
    user = hub.user("alice")
    for name in user.model()["servers"]:
        ask(user, "DELETE", name)
    wait_until(lambda: not running(user) and not slices(shared_node), 60, "her servers have stopped")
    Admin(hub).post("edit", user="alice")


def ask(user: HubUser, method: str, server: str, **options: Any) -> requests.Response:
    """Start or stop a server by the hub's API."""
    path = f"servers/{server}" if server else "server"
    headers = {"X-XSRFToken": user.xsrf("/hub/") or ""}
    url = f"{user.url}/hub/api/users/{user.name}/{path}"
    return user.session.request(method, url, json=options, headers=headers, timeout=60)


def running(user: HubUser) -> list[str]:
    return sorted(name for name, each in user.model()["servers"].items() if each["ready"] or each["pending"])


def start(user: HubUser, server: str, choice: str) -> None:
    answer = ask(user, "POST", server, gpu_slice=choice)
    assert answer.status_code in (201, 202), answer.text
    wait_until(lambda: user.model()["servers"].get(server, {}).get("ready"), 60, f"the server {server!r}")


def slices(node: Node) -> list[str]:
    return sorted(tenant["name"] for tenant in node.client.request("GET", "/api/tenants")["tenants"])


TOO_MANY = "you may have 1 server with a GPU at once, and have the default one: stop one first"


def test_the_second_server_gets_no_gpu_and_starts_without(hub: Hub, shared_node: Node, alice: HubUser) -> None:
    start(alice, "", "1GiB-25")
    page = alice.session.get(f"{hub.url}/hub/spawn/alice/second", timeout=30).text
    assert TOO_MANY in page
    assert page.count("disabled aria-describedby") == 4
    refused = ask(alice, "POST", "second", gpu_slice="1GiB-25")
    assert (refused.status_code, TOO_MANY in refused.text) == (403, True), refused.text
    assert slices(shared_node) == ["alice/"]
    start(alice, "second", "none")
    assert slices(shared_node) == ["alice/"]
    ask(alice, "DELETE", "")
    wait_until(lambda: slices(shared_node) == [], 30, "the first has stopped")
    start(alice, "third", "1GiB-25")
    assert slices(shared_node) == ["alice/third"]


def test_of_two_that_start_at_once_one_gets_it(hub: Hub, shared_node: Node, alice: HubUser) -> None:
    users = [hub.user("alice") for _ in range(4)]
    for user in users:
        user.spawn_page()  # its cookies
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda each: ask(each[1], "POST", f"s{each[0]}", gpu_slice="1GiB-25"), enumerate(users))
        )
    assert sorted(answer.status_code for answer in answers)[1:] == [403, 403, 403]
    assert len(slices(shared_node)) == 1


def test_it_holds_after_the_hub_was_killed(hub: Hub, shared_node: Node, alice: HubUser) -> None:
    start(alice, "second", "1GiB-25")
    hub.crash()
    hub.start()
    again = hub.user("alice")
    refused = ask(again, "POST", "", gpu_slice="1GiB-25")
    assert (refused.status_code, "and have 'second': stop one first" in refused.json()["message"]) == (403, True)
    assert slices(shared_node) == ["alice/second"]


def test_an_admin_gives_more_up_to_the_ceiling(hub: Hub, shared_node: Node, alice: HubUser) -> None:
    admin = Admin(hub)
    assert admin.post("edit", user="alice", gpus="5").status_code == 200
    assert "2 servers (ceiling)" in admin.page("?q=alice")
    assert (admin.person("alice")["gpus"], admin.person("bob")["gpus"]) == (2, 1)
    assert (
        "&#39;many&#39; is no number of servers with a GPU at once" in admin.post("edit", user="bob", gpus="many").text
    )
    start(alice, "", "1GiB-25")
    start(alice, "second", "1GiB-25")
    assert ask(alice, "POST", "third", gpu_slice="1GiB-25").status_code == 403
    assert slices(shared_node) == ["alice/", "alice/second"]
    log = admin.page("audit")
    assert "gpus" in log


def test_a_quota_that_falls_and_rises_gives_back_what_was_chosen(hub: Hub, shared_node: Node, alice: HubUser) -> None:
    admin = Admin(hub)
    start(alice, "", "1GiB-25")
    admin.post("edit", user="alice", memory="512M", cores="10")
    assert shared_node.show("alice%2F")["quota"] == {"memory": GIB // 2, "cores": 10, "policy": "hard"}
    admin.post("edit", user="alice")
    assert shared_node.show("alice%2F")["quota"] == {"memory": GIB, "cores": 25, "policy": "hard"}


def test_who_waits_and_has_one_by_then_is_told_why(hub: Hub, shared_node: Node, alice: HubUser) -> None:
    full = shared_node.tenant("8G", 100, "somebody")
    admin = Admin(hub)

    def choose(server: str) -> str:
        alice.session.get(f"{hub.url}/hub/spawn/alice/{server}", timeout=30)
        url = f"{hub.url}/hub/spawn/alice/{server}?_xsrf={alice.xsrf('/hub/')}"
        return alice.session.post(url, data={"gpu_slice": "1GiB-25"}, timeout=60).text

    choose("one")
    assert "and wait for one with &#39;one&#39;: leave the queue with that first" in choose("two")
    assert [each["server"] for each in admin.get("api/queue").json()["queue"]] == ["one"]
    admin.post("edit", user="alice", gpus="2")
    choose("two")
    admin.post("edit", user="alice", gpus="1")
    assert [each["server"] for each in admin.get("api/queue").json()["queue"]] == ["one", "two"]
    shared_node.client.request("DELETE", f"/api/tenants/{full['id']}")
    wait_until(lambda: len(slices(shared_node)) == 1, 60, "one of them starts")

    def ended() -> list[str]:
        found = admin.get("api/queue").json()["queue"]
        return [each["words"] for each in found if each["stage"] == "ended"]

    words = wait_until(ended, 60, "and the other does not")
    # the other is on its way, or has its slice by then
    assert "you may have 1 server with a GPU at once, and" in words[0]
    assert "'one'" in words[0]
    time.sleep(3)
    assert slices(shared_node) == ["alice/one"]
    for each in admin.get("api/queue").json()["queue"]:
        admin.post("remove", user=each["user"], server=each["server"])
