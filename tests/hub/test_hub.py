"""Servers and their slices on a real JupyterHub, as local processes."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import Node, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from hub import Hub

GIB = 1 << 30
MIB = 1 << 20

RESTARTABLE = "c.JupyterHub.cleanup_servers = False\nc.JupyterHub.cleanup_proxy = False\n"


@pytest.fixture
def hub(node: Node) -> Iterator[Hub]:
    made = Hub(node, RESTARTABLE)
    yield made
    made.stop()


def tenants(node: Node) -> list[str]:
    return [tenant["name"] for tenant in node.client.request("GET", "/api/tenants")["tenants"]]


def test_the_spawn_page_offers_what_is_allowed_and_shows_what_is_free(hub: Hub, node: Node) -> None:
    page = hub.user("alice").spawn_page()
    assert "4 GiB of GPU memory, 50 % of its compute" in page
    above = re.search(r'value="64GiB-50"(.*?)</div>', page, re.DOTALL)
    assert above
    assert "disabled" in above[1]
    assert "more memory than you may have (4 GiB)" in above[1]
    node.tenant("7G", 60, "somebody")
    page = hub.user("alice").spawn_page()
    assert "in use by others: 1 GiB and 40 % of compute are free" in page
    assert page.count("disabled aria-describedby") == 3


def test_what_the_form_sends_is_what_is_taken(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    sent = re.findall(r'name="gpu_slice"[^>]* value="([^"]*)"(?![^>]* disabled)', alice.spawn_page())
    assert sent == ["1GiB-25", "2GiB-50", "4GiB-50", "none"]
    alice.spawn(sent[-1])
    assert tenants(node) == []
    alice.stop()


def test_a_server_lives_in_its_slice_and_the_slice_ends_with_it(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    alice.spawn("1GiB-25")
    assert tenants(node) == ["alice/"]
    assert node.show("alice/")["quota"] == {"memory": GIB, "cores": 25.0, "policy": "hard"}
    assert alice.get("vgpu/slice")["quota"]["memory"] == GIB
    alice.stop()
    assert tenants(node) == []


def test_without_a_gpu_the_server_says_so(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    alice.spawn("none")
    assert tenants(node) == []
    view = alice.get("vgpu/slice")
    assert (view["kind"], view["reason"]) == ("none", "no-slice")
    alice.stop()


@pytest.mark.parametrize("choice", ["64GiB-50", "8 potatoes", "<script>alert(1)</script>", ""])
def test_what_is_not_offered_is_refused_in_words_with_a_way_on(hub: Hub, node: Node, choice: str) -> None:
    alice = hub.user("alice")
    with pytest.raises(
        AssertionError, match=r"is not one of yours: choose from 1GiB-25, 2GiB-50, 4GiB-50, none"
    ) as error:
        alice.spawn(choice)
    assert "<script>" not in str(error.value)
    assert tenants(node) == []


def test_the_rest_api_passes_no_ceiling_either(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    headers = {"X-XSRFToken": alice._xsrf("/hub/")}
    url = f"{hub.url}/hub/api/users/alice/server"
    answer = alice.session.post(url, json={"gpu_slice": "64GiB-50"}, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert "is not one of yours" in answer.json()["message"]
    assert tenants(node) == []


def test_a_full_gpu_says_so_and_offers_a_way_on(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    alice.spawn_page()
    node.tenant("7G", 60, "somebody")
    with pytest.raises(AssertionError, match=r"No room for 4 GiB .*Choose a smaller slice, or start without a GPU"):
        alice.spawn("4GiB-50")
    alice.spawn("1GiB-25")  # the way on
    alice.stop()


def test_a_daemon_that_is_away_says_so_and_offers_a_way_on(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    node.kill()
    assert "The GPU service of this hub does not answer now" in alice.spawn_page()
    with pytest.raises(AssertionError, match="does not answer now: start without a GPU, or try again later"):
        alice.spawn("1GiB-25")
    alice.spawn("none")
    alice.stop()
    node.start()
    alice.spawn("1GiB-25")
    assert tenants(node) == ["alice/"]
    alice.stop()


def test_a_server_that_dies_by_itself_leaves_no_slice(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    alice.spawn("1GiB-25")
    os.kill(
        alice.model()["servers"][""]["state"]["pid"] if "state" in alice.model()["servers"][""] else server_pid(node),
        signal.SIGKILL,
    )
    wait_until(lambda: tenants(node) == [], 60, "the hub noticed and the slice is gone")


def server_pid(node: Node) -> int:
    """The pid of the process that has the slice's directory in its environment and is the server."""
    directory = str(node.run_dir / "tenants")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (
                    directory.encode() in (entry / "environ").read_bytes()
                    and b"singleuser" in (entry / "cmdline").read_bytes()
                ):
                    return int(entry.name)
            except OSError:
                continue
    raise AssertionError("no server")


def test_a_hub_restart_keeps_server_and_slice_and_still_ends_both(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    alice.spawn("2GiB-50")
    assert hub.process
    hub.process.kill()
    hub.process.wait()
    assert alice.get("vgpu/slice")["quota"]["memory"] == 2 * GIB  # through the proxy that lives on
    hub.start()
    assert tenants(node) == ["alice/"]
    again = hub.user("alice")
    wait_until(lambda: again.model()["servers"].get("", {}).get("ready"), 30, "the hub knows the server")
    again.stop()
    assert tenants(node) == []


def test_two_notebooks_are_told_apart(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    alice.spawn("4GiB-50")
    take = (
        "from cuda.bindings import driver\nfrom cuda.core import Device\n"
        "Device(0).set_current()\nblock = driver.cuMemAlloc(%d << 20); print(block[0].name)"
    )
    for path, mib in (("first.ipynb", 100), ("second.ipynb", 300)):
        session = alice.open_notebook(path)
        assert "CUDA_SUCCESS" in alice.execute(session["kernel"]["id"], take % mib)
    view = alice.get("vgpu/slice")
    held = [(row["kind"], row["path"], row["memory"]) for row in view["holders"]]
    assert held == [("notebook", "second.ipynb", 364 * MIB), ("notebook", "first.ipynb", 164 * MIB)]
    assert view["usage"]["memory"] == 528 * MIB
    alice.stop()
