"""The same path with VGPUDockerSpawner: a real engine, a real image, two users on one emulated GPU."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from support.node import Node, wait_until

for folder in ("hub", "docker"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
from engine import Engine  # noqa: E402
from hub import Hub, with_service  # noqa: E402
from test_queue import choose  # noqa: E402

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

MIB = 1 << 20
GIB = 1 << 30

CONFIG = """
c.JupyterHub.spawner_class = "vgpu-docker"
c.DockerSpawner.image = "{image}"
c.DockerSpawner.pull_policy = "never"
c.DockerSpawner.volumes = {{"{shared}": "/home/student/shared"}}
c.DockerSpawner.extra_host_config = {{"init": True}}
c.Spawner.environment = {{"FROM_CONFIG": "yes"}}
c.Spawner.cmd = ["jupyterhub-singleuser"]
c.Spawner.args = []
c.Spawner.start_timeout = 120
c.JupyterHub.hub_ip = "{gateway}"
c.JupyterHub.hub_connect_ip = "{gateway}"
"""


QUEUE = """
from jupyter_vgpu_spawner import setup_vgpu
setup_vgpu(c, db_url="sqlite:///{root}/vgpu.sqlite")
"""


@pytest.fixture
def hub(node: Node, engine: Engine) -> Iterator[Hub]:
    made = Hub(node, config(node, engine))
    yield made
    stop(made, engine)


@pytest.fixture
def hub_with_queue(node: Node, engine: Engine) -> Iterator[Hub]:
    made = with_service(node, config(node, engine) + QUEUE)
    yield made
    stop(made, engine)


def config(node: Node, engine: Engine) -> str:
    shared = node.root / "shared"
    shared.mkdir()
    (shared / "data.txt").write_text("from the admin")
    network = engine.client.networks.get("bridge").attrs["IPAM"]["Config"][0]
    # an engine that has not used its bridge yet names the subnet only; the bridge has its first address
    gateway = network.get("Gateway") or str(next(ip_network(network["Subnet"]).hosts()))
    return CONFIG.format(image=engine.image(), shared=shared, gateway=gateway)


def stop(made: Hub, engine: Engine) -> None:
    made.stop()
    for container in containers(engine):
        engine.client.api.remove_container(container, force=True)


def containers(engine: Engine) -> list[str]:
    found = engine.client.api.containers(all=True, filters={"name": "jupyter-"})
    return [container["Id"] for container in found]


TAKE = """
import os
from cuda.bindings import driver
from cuda.core import Device
Device(0).set_current()
blocks = []
while True:
    error, block = driver.cuMemAlloc(32 << 20)
    if error != driver.CUresult.CUDA_SUCCESS: break
    blocks.append(block)
_, free, total = driver.cuMemGetInfo()
print(len(blocks), error.name, total >> 20, os.environ["FROM_CONFIG"], open("/home/student/shared/data.txt").read(), os.getuid() != 0)
"""

SNOOP = """
import os
print(sorted(os.listdir("/run/vgpu")), sorted(os.listdir("/run/vgpu/slice")))
for path in ("/run/vgpu/slice/slice", "/opt/vgpu/lib/libvgpu.so"):
    try: open(path, "r+b"); print("writable", path)
    except OSError as error: print("refused", path)
import pynvml
"""


def test_two_users_at_once_each_held_to_their_own_slice(hub: Hub, node: Node, engine: Engine) -> None:
    alice, bob = hub.user("alice"), hub.user("bob")
    alice.spawn("1GiB-25", 180)
    bob.spawn("2GiB-50", 180)
    kernels = {user: user.open_notebook("work.ipynb")["kernel"]["id"] for user in (alice, bob)}
    # the quota less the context of 64 MiB, in blocks of 32: each its own, both at the same time
    assert alice.execute(kernels[alice], TAKE) == "30 CUDA_ERROR_OUT_OF_MEMORY 1024 yes from the admin True\n"
    assert bob.execute(kernels[bob], TAKE) == "62 CUDA_ERROR_OUT_OF_MEMORY 2048 yes from the admin True\n"
    for user, size in ((alice, GIB), (bob, 2 * GIB)):
        view = user.get("vgpu/slice")
        assert view["tier"] == "guard"
        assert view["usage"]["memory"] == size
        # one holder, the notebook, found through the container's own process numbers; nothing of the neighbour
        assert [(row["kind"], row["path"], row["memory"]) for row in view["holders"]] == [
            ("notebook", "work.ipynb", size)
        ]
    mine = {process["pid"] for process in node.show("alice/")["processes"]}
    assert mine.isdisjoint(process["pid"] for process in node.show("bob/")["processes"])
    alice.stop()
    assert bob.get("vgpu/slice")["usage"]["memory"] == 2 * GIB
    bob.stop()
    assert node.client.request("GET", "/api/tenants")["tenants"] == []
    wait_until(lambda: not containers(engine), 20, "the containers are gone")


def test_a_container_without_a_gpu_hears_when_its_turn_comes(node: Node, hub_with_queue: Hub) -> None:
    full = node.tenant("8G", 100, "somebody")
    alice = hub_with_queue.user("alice")
    choose(alice, "1GiB-25")
    alice.spawn("none", 180)
    kernel = alice.open_notebook("work.ipynb")["kernel"]["id"]
    look = (
        "import os; print(os.listdir('/run/vgpu'), os.path.exists('/opt/vgpu'), os.access('/run/vgpu/board', os.W_OK))"
    )
    assert alice.execute(kernel, look) == "['board'] False False\n"
    wait_until(lambda: (alice.get("vgpu/slice").get("queue") or {}).get("number") == 1, 20, "she reads her place")
    node.client.request("DELETE", f"/api/tenants/{full['id']}")
    wait_until(lambda: alice.get("vgpu/slice")["queue"]["until"], 30, "and that it is her turn")
    alice.stop()
    assert node.client.request("GET", "/api/boards") == {"boards": []}
    wait_until(lambda: alice.model()["servers"].get("", {}).get("ready"), 120, "it starts again by itself")
    assert node.show("alice%2F")["quota"]["memory"] == GIB
    alice.stop()


def test_a_container_sees_its_own_slice_read_only_and_survives_both_daemons(hub: Hub, node: Node) -> None:
    alice = hub.user("alice")
    alice.spawn("1GiB-25", 180)
    kernel = alice.open_notebook("work.ipynb")["kernel"]["id"]
    seen = alice.execute(kernel, SNOOP.replace("import pynvml\n", ""))
    assert seen.splitlines() == [
        "['emulated', 'slice'] ['join.sock', 'slice', 'vgpu.sock']",
        "refused /run/vgpu/slice/slice",
        "refused /opt/vgpu/lib/libvgpu.so",
    ]
    assert "CUDA_ERROR_OUT_OF_MEMORY" in alice.execute(kernel, TAKE)
    old = node.kill_guard()
    wait_until(lambda: node.guard_pid() != old, 5, "another guard")
    node.kill()
    node.start()
    view = wait_until(lambda: usage(alice), 10, "numbers are back")
    assert view["usage"]["memory"] == GIB
    hub.crash()
    hub.start()
    alice = hub.user("alice")
    assert alice.model()["servers"][""]["ready"]
    alice.session.get(f"{hub.url}/user/alice/lab", timeout=60).raise_for_status()  # the server's own login
    assert [(each["name"], each["usage"]["memory"]) for each in tenants(node)] == [("alice/", GIB)]
    assert "SUCCESS" in alice.execute(kernel, "print(driver.cuMemFree(blocks.pop())[0].name)")
    assert node.used("alice/") == GIB - 32 * MIB
    alice.stop()
    assert is_whole(node)


def tenants(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = node.client.request("GET", "/api/tenants")["tenants"]
    return found


def is_whole(node: Node) -> bool:
    """Nothing of the GPU is promised to anybody."""
    gpu = node.client.request("GET", "/api/gpus")["gpus"][0]
    return not tenants(node) and all(gpu[what]["free"] == gpu[what]["total"] for what in ("memory", "cores"))


def usage(user: object) -> dict[str, object] | None:
    view: dict[str, object] = user.get("vgpu/slice")  # type: ignore[attr-defined]
    return view if view["kind"] == "slice" else None


def test_a_container_that_is_killed_leaves_no_slice(hub: Hub, node: Node, engine: Engine) -> None:
    alice = hub.user("alice")
    alice.spawn("1GiB-25", 180)
    engine.client.containers.list(filters={"name": "jupyter-alice"})[0].kill()
    wait_until(lambda: node.client.request("GET", "/api/tenants")["tenants"] == [], 60, "the slice is gone")


def test_when_docker_alone_is_started_anew_its_slices_end_and_everybody_can_start(
    hub: Hub, node: Node, engine: Engine
) -> None:
    alice, bob = hub.user("alice"), hub.user("bob")
    alice.spawn("4GiB-50", 180)
    bob.spawn("2GiB-50", 180)
    guard = node.guard_pid()
    engine.crash()
    with pytest.raises(AssertionError):  # while it is away nobody starts, and nothing is promised for it
        hub.user("carol").spawn("1GiB-25", 60)
    engine.boot()
    wait_until(lambda: not alice.model()["servers"] and not bob.model()["servers"], 120, "the hub knows it")
    wait_until(lambda: is_whole(node), 60, "nobody holds a slice")
    assert node.guard_pid() == guard
    alice.spawn("4GiB-50", 180)
    bob.spawn("4GiB-50", 180)
    assert sorted(each["name"] for each in tenants(node)) == ["alice/", "bob/"]
    kernel = alice.open_notebook("work.ipynb")["kernel"]["id"]
    assert alice.execute(kernel, TAKE).startswith("126 CUDA_ERROR_OUT_OF_MEMORY 4096")
    alice.stop()
    bob.stop()
    assert is_whole(node)


def test_after_a_power_cut_no_slice_is_held_and_everybody_can_start(hub: Hub, node: Node, engine: Engine) -> None:
    alice, bob = hub.user("alice"), hub.user("bob")
    alice.spawn("4GiB-50", 180)
    bob.spawn("2GiB-50", 180)
    guard = node.guard_pid()
    hub.crash()
    node.kill()
    os.kill(guard, signal.SIGKILL)
    engine.crash()
    shutil.rmtree(node.run_dir)  # it lies in memory where a node boots
    engine.boot()
    node.start()
    hub.start()
    alice = hub.user("alice")
    wait_until(lambda: not node.client.request("GET", "/api/tenants")["tenants"], 60, "nobody holds a slice")
    wait_until(lambda: not alice.model()["servers"], 60, "the hub knows that no server runs")
    free = node.client.request("GET", "/api/gpus")["gpus"][0]
    assert (free["memory"]["free"], free["cores"]["free"]) == (free["memory"]["total"], 100)
    alice.spawn("4GiB-50", 180)
    assert node.show("alice/")["quota"]["memory"] == 4 * GIB
    kernel = alice.open_notebook("work.ipynb")["kernel"]["id"]
    assert alice.execute(kernel, TAKE).startswith("126 CUDA_ERROR_OUT_OF_MEMORY 4096")
    alice.stop()
