"""Who has no work takes no time: the guard sees it from outside, without a word of the tenant's."""

from __future__ import annotations

import time

import pytest
from support.node import Node, Worker, wait_until


def on_gpu(node: Node, name: str) -> float:
    """Seconds that the tenant's channels were on the GPU."""
    return float(node.show(name)["usage"]["on_gpu_ns"]) / 1e9


def fall_asleep(node: Node, name: str) -> None:
    def rests() -> bool:
        before = on_gpu(node, name)
        time.sleep(0.3)
        return on_gpu(node, name) == before

    wait_until(rests, 10, f"{name} is taken off the GPU")


def share(worker: Worker, seconds: float = 3) -> float:
    return float(worker.ask("spin", seconds=seconds)["done"]) * 0.005 / seconds


@pytest.mark.parametrize(("policy", "least", "most"), [("burst", 0.75, 1.01), ("hard", 0.35, 0.54)])
def test_what_an_idle_neighbour_leaves(node: Node, policy: str, least: float, most: float) -> None:
    idle = Worker(node, node.tenant("1G", 50, "idle", policy=policy))
    busy = Worker(node, node.tenant("1G", 50, "busy", policy=policy))
    idle.ask("spin", seconds=0.3)
    busy.ask("spin", seconds=0.3)
    fall_asleep(node, "idle")
    before = on_gpu(node, "idle")
    assert least < share(busy) < most
    assert on_gpu(node, "idle") == before
    # it is still there, and has its share as soon as it wants it
    busy.send("spin", seconds=3)
    assert 0.3 < share(idle) < 0.6
    assert busy.answer()["done"] * 0.005 / 3 > 0.3
    fall_asleep(node, "idle")
    idle.close()
    busy.close()


def test_a_long_kernel_is_no_idleness(node: Node) -> None:
    """Nothing is handed in while it runs, and the GPU has fetched it: only the driver knows that it is at work."""
    long, busy = (Worker(node, node.tenant("1G", 50, name, policy="burst")) for name in ("long", "busy"))
    long.ask("kernel", milliseconds=5)
    busy.send("spin", seconds=4)
    fall_asleep(node, "long")
    before = on_gpu(node, "long")
    assert long.ask("kernel", milliseconds=600)["error"] == "CUDA_SUCCESS"
    assert on_gpu(node, "long") - before > 0.25  # it had its turns until it was done
    busy.answer()
    long.close()
    busy.close()


def test_many_sleepers_wake_beside_each_other(node: Node) -> None:
    names = [f"t{i}" for i in range(7)]
    workers = [Worker(node, node.tenant("512M", 14, name)) for name in names]
    for worker in workers:
        worker.ask("spin", seconds=0.1)
    for name in names:
        fall_asleep(node, name)
    for worker in workers[1:]:
        worker.send("spin", seconds=4)
    alone = workers[0].ask("spin", seconds=4)["done"]
    others = [worker.answer()["done"] for worker in workers[1:]]
    assert alone > 10
    assert min(others) > 10  # nobody is forgotten
    workers[3].kill()  # nor is anybody waited for who is gone
    for name in names:
        fall_asleep(node, name)
    for worker in workers[:3] + workers[4:]:
        assert worker.ask("spin", seconds=0.2)["done"] >= 1
        worker.close()


def test_a_context_that_is_dropped_is_not_waited_for(node: Node) -> None:
    """Its channels are gone from the driver, which can't say of them that they are idle."""
    tenant = node.tenant("1G", 50, "dropping", policy="burst")
    stays, drops = Worker(node, tenant), Worker(node, tenant)
    busy = Worker(node, node.tenant("1G", 50, "busy", policy="burst"))
    for worker in (stays, drops, busy):
        worker.ask("spin", seconds=0.2)
    drops.ask("reset")
    busy.send("spin", seconds=5)
    fall_asleep(node, "dropping")
    assert stays.ask("spin", seconds=0.3)["done"] > 3
    busy.answer()
    for worker in (stays, drops, busy):
        worker.close()


def test_sleepers_survive_the_guard(node: Node) -> None:
    workers = [Worker(node, node.tenant("1G", 30, name)) for name in ("first", "second", "third")]
    for worker in workers:
        worker.ask("spin", seconds=0.2)
    for name in ("first", "second", "third"):
        fall_asleep(node, name)
    old = node.kill_guard()
    wait_until(lambda: node.guard_pid() != old, 5, "another guard")
    for name, worker in zip(("first", "second", "third"), workers, strict=True):
        fall_asleep(node, name)
        assert worker.ask("spin", seconds=0.3)["done"] > 5
    workers[0].kill()
    assert workers[1].ask("spin", seconds=0.3)["done"] > 5
    for worker in workers[1:]:
        worker.close()
    wait_until(lambda: all(node.used(name) == 0 for name in ("first", "second", "third")), 2, "nothing is held")
