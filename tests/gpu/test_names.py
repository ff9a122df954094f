"""One piece of memory under several names, in several processes; and memory that a checkpoint takes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.gpu import nvml_used
from support.node import Node, wait_until

pytestmark = pytest.mark.gpu

MIB = 1 << 20
GIB = 1 << 30

SHARE = """
import torch, torch.multiprocessing as mp
def child(inbox, outbox):
    tensor = inbox.get(); outbox.put(float(tensor.sum().item())); inbox.get(); del tensor
if __name__ == "__main__":
    mp.set_start_method("spawn"); inbox, outbox = mp.Queue(), mp.Queue()
    tensor = torch.ones(1 << 28, device="cuda")
    process = mp.Process(target=child, args=(inbox, outbox)); process.start()
    inbox.put(tensor); print("sum", outbox.get(), flush=True)
    input(); inbox.put(None); process.join(); print("done", flush=True)
"""


@pytest.fixture
def tenant(gpu_node: Node) -> Any:
    made = gpu_node.tenant("4G", 50, "names")
    yield made
    gpu_node.client.request("DELETE", f"/api/tenants/{made['id']}")


def step(process: subprocess.Popen[str]) -> str:
    assert process.stdin
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    return str(json.loads(line)["stage"])


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_exported_memory_counts_once_and_as_long_as_its_file(
    gpu_node: Node, tenant: dict[str, Any], names: Path, user: str
) -> None:
    prefix = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"] if user == "ordinary" else []
    for directory in (names.parent, *names.parents[1:3]):
        directory.chmod(0o755)
    process = gpu_node.spawn(tenant, str(names), "vmm", "1024", stdin=subprocess.PIPE, prefix=prefix)
    seen = {}
    for wanted in ("context", "created", "exported", "imported", "released", "closed"):
        assert step(process) == wanted
        seen[wanted] = gpu_node.used("names") - seen.get("context", 0)
        if wanted == "closed":
            wait_until(lambda: gpu_node.used("names") == seen["context"], 2, "the closed file gives it back")
        go_on(process)
    print(seen)
    assert seen["created"] == seen["exported"] == seen["imported"] == seen["released"] == GIB
    assert process.wait(20) == 0
    wait_until(lambda: gpu_node.used("names") == 0, 1, "all is given back at exit")


def test_a_tensor_shared_between_processes_counts_once(gpu_node: Node, tenant: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(SHARE)
    base = nvml_used()
    process = gpu_node.spawn(tenant, sys.executable, str(script), stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline().split() == ["sum", f"{1 << 28}.0"]
    used, witness = gpu_node.used("names"), nvml_used() - base
    print("ledger", used / MIB, "nvml", witness / MIB)
    assert GIB < used < 2.5 * GIB  # one tensor of 1 GiB, two contexts
    assert abs(used - witness) < 0.05 * witness
    out, err = process.communicate("\n", timeout=60)
    assert "done" in out, err
    wait_until(lambda: gpu_node.used("names") == 0, 1, "all is given back at exit")


def test_a_checkpoint_gives_the_memory_back_and_takes_it_again(
    gpu_node: Node, tenant: dict[str, Any], names: Path, load: Path
) -> None:
    running = gpu_node.spawn(tenant, str(load), "run", "100000", "12", "plain", "1024", stdin=subprocess.PIPE)
    assert running.stdout
    assert running.stdout.readline().strip() == "ready"
    go_on(running)
    before = gpu_node.used("names")
    keeper = subprocess.Popen(
        [str(names), "checkpoint", str(running.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert step(keeper) == "out"
    wait_until(lambda: gpu_node.used("names") < 64 * MIB, 2, "the checkpoint gives the memory back")
    go_on(keeper)
    assert step(keeper) == "back"
    assert abs(gpu_node.used("names") - before) < 64 * MIB
    go_on(keeper)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert json.loads(out.strip().splitlines()[-1])["windows"][-1][1] > 0  # it runs again
