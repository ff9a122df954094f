"""Ordinary users: what holds for them, and that they are told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import CLI, Node, Worker, wait_until

MIB = 1 << 20
GIB = 1 << 30
ROOT = Path(__file__).parents[2]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two different users")


def as_user(uid: int) -> list[str]:
    """Prefix of a command of an ordinary user, who may read this checkout and its interpreter wherever they are."""
    caps = "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"
    return [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        "--bounding-set=-all,+dac_read_search",
        *caps,
    ]


@pytest.fixture
def users_node() -> Iterator[Node]:
    made = Node("--emulate", "--emulated-memory=4G", prefix=as_user(65534))
    yield made
    made.stop()


@needs_root
def test_an_ordinary_users_own_programs_are_held_by_the_guard(users_node: Node) -> None:
    worker = Worker(users_node, users_node.tenant("1G", 50), prefix=as_user(65534))
    assert worker.ask("fill", bytes=32 * MIB)["blocks"] == 30
    assert users_node.show("tenant")["tier"] == "guard"
    assert worker.close() == 0


@needs_root
def test_where_the_guard_cannot_reach_the_shim_holds_and_says_so(users_node: Node) -> None:
    """Another user's processes: an ordinary user's guard may not look into them."""
    tenant = users_node.tenant("1G", 50)
    first, second = (Worker(users_node, tenant, prefix=as_user(65533)) for _ in range(2))
    assert users_node.show("tenant")["tier"] == "shim"
    assert first.ask("info")["total"] == GIB
    filled = first.ask("fill", bytes=32 * MIB)
    assert filled == {"error": "CUDA_ERROR_OUT_OF_MEMORY", "blocks": 28}  # beside two contexts of 64 MiB
    # the quota is the tenant's, not the process'
    assert second.ask("alloc", bytes=2 * MIB) == {"error": "CUDA_ERROR_OUT_OF_MEMORY"}
    assert second.ask("info")["free"] == 0
    view = users_node.show("tenant")
    assert view["usage"]["memory"] == GIB
    assert view["refusals"]["count"] == 2
    assert [(row["pid"], row["memory"]) for row in view["processes"]] == [
        (first.pid, GIB - 64 * MIB),
        (second.pid, 64 * MIB),
    ]
    first.kill()
    wait_until(lambda: users_node.used("tenant") == 64 * MIB, 2, "kill -9 gives everything back")
    assert second.ask("alloc", bytes=448 * MIB) == {"error": "CUDA_SUCCESS"}
    # the guard is told of a new quota too, and has no numbers of its own here
    users_node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"memory": "2G"})
    assert users_node.used("tenant") == 512 * MIB
    assert second.ask("info") == {"free": 2 * GIB - 512 * MIB, "total": 2 * GIB, "device_total": 2 * GIB}
    second.ask("free")
    assert users_node.used("tenant") == 64 * MIB
    assert second.close() == 0


@needs_root
def test_a_node_that_allows_no_weaker_tier_starts_nothing_outside_the_guard() -> None:
    node = Node("--emulate", "--NodeApp.allow_shim_tier=False", prefix=as_user(65534))
    try:
        process = node.spawn(node.tenant(), "true", prefix=as_user(65533))
        _, err = process.communicate(timeout=20)
        assert process.returncode == 125
        assert "the guard can't hold this process (Permission denied), and this node allows no weaker tier" in err
    finally:
        node.stop()


@needs_root
def test_one_user_does_not_enter_anothers_slice(node: Node) -> None:
    tenant = node.tenant(owner=65534)
    process = node.spawn(tenant, "true", prefix=as_user(65533)[:-2])
    _, err = process.communicate(timeout=20)
    assert process.returncode == 125
    assert "this slice is another user's" in err


def test_the_demo_comes_up_for_an_ordinary_user_and_leaves_nothing_behind() -> None:
    prefix = as_user(65534) if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o777)
        result = subprocess.run(
            [*prefix, sys.executable, str(ROOT / "demo" / "demo.py"), "--smoke"],
            env=os.environ | {"HOME": home, "TMPDIR": home, "XDG_RUNTIME_DIR": home},
            capture_output=True,
            text=True,
            timeout=200,
        )
        left = [str(path) for path in Path(home).rglob("*") if "vgpu" in path.name]
        shutil.rmtree(home, ignore_errors=True)
        os.makedirs(home, exist_ok=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip().splitlines()[-1].startswith("smoke passed: hub up, login,")
    assert left == []


def test_doctor_says_in_words_what_works(node: Node) -> None:
    result = subprocess.run(
        [*CLI, "doctor", "--run-dir", str(node.run_dir)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0
    for topic in ("tier", "package", "kernel", "reach", "GPU", "Docker", "daemon"):
        assert topic in result.stdout
    assert "vgpud answers: ok" in result.stdout
    away = subprocess.run([*CLI, "doctor", "--run-dir", "/nowhere"], capture_output=True, text=True, timeout=60)
    assert "start it: jupyter vgpu node" in away.stdout


def test_doctor_in_a_slice_tells_of_the_slice(node: Node) -> None:
    out, err = node.spawn(node.tenant("1G", 25, "alice/"), *CLI, "doctor").communicate(timeout=60)
    said = "ok slice alice/ has 1 GiB, 25 % hard of Emulated vGPU device 0, in tier guard"
    assert out.split() == said.split(), err


def test_doctor_warns_an_ordinary_user(tmp_path: Path) -> None:
    prefix = as_user(65534) if os.geteuid() == 0 else []
    result = subprocess.run(
        [*prefix, *CLI, "doctor", "--run-dir", "/nowhere"], capture_output=True, text=True, timeout=60
    )
    assert "run the node daemon as root" in result.stdout
