"""Two notebooks that run PyTorch on a real GPU, in a real Jupyter server: whose memory is whose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gpu import nvml_process_bytes
from support.node import Node, wait_until

pytest.importorskip("jupyter_server", reason="there is no Jupyter server here")
pytest.importorskip("ipykernel", reason="there is no IPython kernel here")
from jupyter_client.blocking.client import BlockingKernelClient
from support.jupyter import JupyterServer

pytestmark = pytest.mark.gpu

MIB = 1 << 20
HOLD = """
import torch
block = torch.empty({bytes}, dtype=torch.uint8, device="cuda")
(torch.randn(512, 512, device="cuda") @ torch.randn(512, 512, device="cuda")).sum().item()
"""


@pytest.fixture
def server(gpu_node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JupyterServer]:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    tenant = gpu_node.tenant("16G", 50, "notebooks")
    made = JupyterServer(gpu_node, tenant)
    yield made
    made.stop()
    gpu_node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def is_ready(client: BlockingKernelClient) -> bool:
    """One that has only begun to start has no heart to beat, and is called dead."""
    try:
        client.wait_for_ready(timeout=10)
    except RuntimeError:
        return False
    return True


def run(directory: Path, kernel: str, code: str) -> None:
    client = BlockingKernelClient(connection_file=str(directory / f"kernel-{kernel}.json"))
    client.load_connection_file()
    client.start_channels()
    try:
        wait_until(lambda: is_ready(client), 60, "the kernel answers")
        reply = client.execute_interactive(code, timeout=90, store_history=False)
        assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()


@pytest.mark.timeout(200)
def test_memory_of_two_notebooks_is_as_nvml_says(server: JupyterServer, tmp_path: Path) -> None:
    sizes = {"train.ipynb": 3000 * MIB, "old.ipynb": 1000 * MIB}
    for path, size in sizes.items():
        server.open_notebook(path)
        sessions = server.get("api/sessions").json()
        kernel = next(each["kernel"]["id"] for each in sessions if each["path"] == path)
        run(tmp_path, kernel, HOLD.format(bytes=size))
    time.sleep(2)
    witness = nvml_process_bytes()
    holders = {each["path"]: each for each in server.get("vgpu/slice").json()["holders"]}
    assert set(holders) == set(sizes)
    for path, size in sizes.items():
        (pid,) = holders[path]["pids"]
        held = holders[path]["memory"]
        assert held > size
        assert abs(held - witness[pid]) <= max(32 * MIB, witness[pid] // 100), (path, held, witness)
        print(path, held // MIB, witness[pid] // MIB)
    session = next(each for each in server.get("api/sessions").json() if each["path"] == "train.ipynb")
    server.session.delete(f"{server.url}/api/sessions/{session['id']}", timeout=30).raise_for_status()
    wait_until(
        lambda: [each["path"] for each in server.get("vgpu/slice").json()["holders"]] == ["old.ipynb"],
        20,
        "what the other held is free",
    )
