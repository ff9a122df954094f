"""A real Jupyter server in a slice, without a hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from .node import Node, wait_until

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from demo import free_port

TOKEN = "a-token-for-this-server"


class JupyterServer:
    """With the extension, and others beside it. path: directories for PYTHONPATH before the others."""

    def __init__(
        self,
        node: Node,
        tenant: Mapping[str, Any],
        *arguments: str,
        extensions: tuple[str, ...] = (),
        path: tuple[str, ...] = (),
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        enabled = dict.fromkeys(("jupyter_vgpu", *extensions), True)
        self.process = node.spawn(
            dict(tenant),
            *(sys.executable, "-m", "jupyter_server", "--no-browser", "--log-level=ERROR"),
            *(f"--port={port}", "--ServerApp.port_retries=0"),
            *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.jpserver_extensions={enabled}"),
            *(["--allow-root"] if os.geteuid() == 0 else []),
            *arguments,
            env={"PYTHONPATH": os.pathsep.join(filter(None, [*path, os.environ.get("PYTHONPATH", "")]))},
        )
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"token {TOKEN}"
        wait_until(self._answers, 60, "the Jupyter server answers")

    def _answers(self) -> bool:
        try:
            return self.session.get(f"{self.url}/api/status", timeout=5).ok
        except requests.RequestException:
            return False

    def get(self, path: str) -> requests.Response:
        return self.session.get(f"{self.url}/{path}", timeout=20)

    def open_notebook(self, path: str) -> None:
        """Start a kernel for it."""
        body = {"path": path, "type": "notebook", "name": "", "kernel": {"name": "python3"}}
        self.session.post(f"{self.url}/api/sessions", json=body, timeout=60).raise_for_status()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
