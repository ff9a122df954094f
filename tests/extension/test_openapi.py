"""The REST description against a real server: schemathesis asks for all of it, with a login and without."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.jupyter import TOKEN, JupyterServer
from support.node import Node, Worker

from jupyter_vgpu.hours import LABEL, Balance, End
from jupyter_vgpu.turn import LABEL as TURN_LABEL
from jupyter_vgpu.turn import Stage, Turn

MIB = 1 << 20


@pytest.fixture
def server(node: Node) -> Iterator[JupyterServer]:
    """A slice of which everything can be told."""
    hours = Balance(9, 10).as_label([0.8], End.STOP)
    idle = json.dumps({"seconds": 600, "action": "kernel"})
    turn = Turn("gpu", Stage.WAITING, 2, 10).as_label()
    labels = {LABEL: hours, "jupyterhub_idle": idle, TURN_LABEL: turn}
    tenant = node.tenant("1G", 25, labels=labels, model="vGPU", exclusive=True)
    node.client.request("PUT", "/api/maintenance", {"message": "Restart at 18:00", "closed": True})
    worker = Worker(node, tenant)
    worker.ask("alloc", bytes=64 * MIB)
    worker.ask("alloc", bytes=2048 * MIB)
    made = JupyterServer(node, tenant)
    try:
        made.open_notebook("a.ipynb")
        view = made.get("vgpu/slice").json()
        assert all(view[part] for part in ("hours", "idle", "maintenance", "holders", "queue"))
        assert view["refusals"]["recent"][0]["holders"]
        assert (view["quota"]["model"], view["quota"]["exclusive"]) == ("vGPU", True)
        yield made
    finally:
        made.stop()
        worker.close()


@pytest.mark.timeout(240)
def test_the_server_answers_as_the_description_says(server: JupyterServer, tmp_path: Path) -> None:
    told = server.get("vgpu/openapi.json").json()
    assert told["servers"] == [{"url": "/"}]
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(told))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(description), f"--url={server.url}"]
    # as everywhere in Jupyter Server: 403, not 401, to who has not logged in, and no Allow beside a 405
    checks = ["--checks=all", "--exclude-checks=missing_required_header,unsupported_method"]
    options = [*checks, "--max-examples=20", "--no-color", f"--header=Authorization: token {TOKEN}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", ["vgpu/slice", "vgpu/openapi.json"])
def test_each_route_wants_a_login(server: JupyterServer, path: str) -> None:
    for headers in ({}, {"Authorization": "token wrong"}):
        answer = requests.get(f"{server.url}/{path}", headers=headers, timeout=20, allow_redirects=False)
        assert answer.status_code == 403, answer.text
