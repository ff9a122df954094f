"""The idle-culler with our arbiter on a real hub: who holds and rests is stopped, who works is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import Node, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from hub import Hub, HubUser

MIB = 1 << 20
LIMIT_S = 12

CONFIG = """
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, db_url="sqlite:///{root}/vgpu.sqlite", gpu_idle_minutes=0.2)
c.JupyterHub.last_activity_interval = 2
"""
HOLD = """
from cuda.bindings import driver
driver.cuInit(0)
driver.cuCtxSetCurrent(driver.cuDevicePrimaryCtxRetain(0)[1])
buffer = driver.cuMemAlloc(64 << 20)[1]
"""
WORK = (
    HOLD
    + """
import threading, time
context = driver.cuCtxGetCurrent()[1]
def work():
    driver.cuCtxSetCurrent(context)
    for _ in range(600):
        driver.cuMemsetD8(buffer, 1, 64 << 20)
        time.sleep(0.2)
threading.Thread(target=work, daemon=True).start()
"""
)


def hub_that(node: Node, arguments: str) -> Iterator[Hub]:
    config = CONFIG.replace("{root}", str(node.root)).replace("gpu_idle_minutes=0.2", arguments)
    made = Hub(node, config)
    yield made
    made.stop()


@pytest.fixture
def hub(node: Node) -> Iterator[Hub]:
    yield from hub_that(node, "gpu_idle_minutes=0.2")


def test_a_server_that_holds_and_rests_is_stopped_and_one_that_works_is_not(hub: Hub, node: Node) -> None:
    alice, bob = hub.user("alice"), hub.user("bob")
    for user, code in ((bob, WORK), (alice, HOLD)):
        user.spawn("1GiB-25")
        kernel = user.open_notebook("a.ipynb")["kernel"]["id"]
        user.execute(kernel, code)
    assert node.used("alice/") >= 64 * MIB
    rests_since = node.show("alice%2F")["activity"]["last_active"]
    wait_until(lambda: "" not in alice.model()["servers"], 60, "the resting server is stopped")
    assert time.time() - rests_since >= LIMIT_S  # not before its time
    time.sleep(LIMIT_S)  # some looks of the culler
    assert bob.model()["servers"][""]["ready"]
    assert node.show("bob/")["activity"]["busy"]
    assert [tenant["name"] for tenant in node.client.request("GET", "/api/tenants")["tenants"]] == ["bob/"]
    bob.stop()


def test_a_slice_that_nobody_uses_is_left_while_its_user_is_there(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    alice.spawn("1GiB-25")
    end = time.monotonic() + 1.7 * LIMIT_S
    while time.monotonic() < end:  # the hub hears of what its proxy sees
        alice.get("vgpu/slice")
        time.sleep(1)
    assert node.used("alice/") == 0
    alice.stop()


def resting(user: HubUser) -> list[str]:
    return [rest["name"] for rest in user.get("vgpu/slice")["idle"]["rests"]]


@pytest.fixture
def hub_that_ends_kernels(node: Node) -> Iterator[Hub]:
    yield from hub_that(node, 'gpu_idle_minutes=0.2, gpu_idle_action="kernel"')


def test_a_kernel_that_rests_is_shut_down_and_its_server_and_those_that_work_go_on(
    hub_that_ends_kernels: Hub, node: Node
) -> None:
    alice = hub_that_ends_kernels.user("alice")
    alice.spawn("1GiB-25")
    sessions = {
        path: alice.open_notebook(path)["kernel"]["id"] for path in ("rests.ipynb", "works.ipynb", "text.ipynb")
    }
    alice.execute(sessions["works.ipynb"], WORK)
    alice.execute(sessions["rests.ipynb"], HOLD)
    wait_until(lambda: resting(alice) == ["rests.ipynb"], 10, "one rests, and one is seen at work")
    told = alice.get("vgpu/slice")["idle"]
    assert (told["action"], told["seconds"]) == ("kernel", LIMIT_S)
    assert LIMIT_S - 10 < told["rests"][0]["until"] - time.time() <= LIMIT_S

    def running() -> set[str]:
        return {kernel["id"] for kernel in alice.get("api/kernels")}

    wait_until(lambda: sessions["rests.ipynb"] not in running(), 90, "the resting kernel is shut down")
    assert running() == {sessions["works.ipynb"], sessions["text.ipynb"]}
    assert [each["name"] for each in alice.get("vgpu/slice")["idle"]["ended"]] == ["rests.ipynb"]
    assert node.show("alice/")["activity"]["busy"]
    alice.stop()


@pytest.fixture
def hub_that_tells(node: Node) -> Iterator[Hub]:
    yield from hub_that(node, 'gpu_idle_minutes=0.2, gpu_idle_action="notify"')


def test_where_users_are_told_and_no_more_nothing_ends(hub_that_tells: Hub, node: Node) -> None:
    alice = hub_that_tells.user("alice")
    alice.spawn("1GiB-25")
    kernel = alice.open_notebook("rests.ipynb")["kernel"]["id"]
    alice.execute(kernel, HOLD)
    wait_until(lambda: resting(alice) == [""], 20, "it is seen to rest")
    told = alice.get("vgpu/slice")["idle"]
    assert (told["action"], told["seconds"]) == ("notify", LIMIT_S)
    time.sleep(max(0, told["rests"][0]["until"] - time.time()) + LIMIT_S)  # its time is over, and as long again
    assert resting(alice) == [""]  # who looks on is told as before
    assert [each["id"] for each in alice.get("api/kernels")] == [kernel]
    assert alice.model()["servers"][""]["ready"]
    assert node.used("alice/") >= 64 * MIB
    alice.stop()
