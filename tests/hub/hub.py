"""A real JupyterHub for a test, with a node daemon behind it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests
from support.node import Node, wait_until

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "demo"))
from hubclient import HubUser  # noqa: E402

from demo import find_proxy, free_port  # noqa: E402

PASSWORD = "a-long-password"

CONFIG = """
import os, sys
c = get_config()
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_port = {port} + 1
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{port2}"
c.ConfigurableHTTPProxy.command = {proxy!r}.split()
c.ConfigurableHTTPProxy.pid_file = "{root}/proxy.pid"
c.JupyterHub.db_url = "sqlite:///{root}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{root}/cookie_secret"
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = "{password}"
c.Authenticator.allowed_users = {{"alice", "bob"}}
c.JupyterHub.spawner_class = "vgpu-simple"
c.VGPUMixin.vgpu_socket = "{socket}"
c.VGPUMixin.gpu_mem_limit = "4G"
c.VGPUMixin.gpu_core_limit = 50
c.VGPUMixin.gpu_slices = [{{"memory": "1G", "cores": 25}}, {{"memory": "2G", "cores": 50}}, {{"memory": "4G", "cores": 50}}, {{"memory": "64G", "cores": 50}}]
c.SimpleLocalProcessSpawner.home_dir_template = "{root}/home/{{username}}"
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.args = ["--allow-root"] if os.geteuid() == 0 else []
c.Spawner.environment = {{"JUPYTER_CONFIG_DIR": "{root}/jupyter", "JUPYTER_DATA_DIR": "{root}/jupyter", "JUPYTER_RUNTIME_DIR": "{root}/jupyter/runtime", "IPYTHONDIR": "{root}/ipython"}}
"""


class Hub:
    """JupyterHub as an admin would run it; `extra` is added to its config file."""

    def __init__(self, node: Node, extra: str = "") -> None:
        self.root = node.root / "hub"
        (self.root / "home").mkdir(parents=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = self.root / "jupyterhub_config.py"
        values = {"port": self.port, "port2": self.port + 2, "proxy": find_proxy(), "root": self.root}
        self.config.write_text(CONFIG.format(**values, password=PASSWORD, socket=node.client.where) + extra)
        self.log = self.root / "hub.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(self.config)],
                cwd=self.root,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, 60, "the hub's login page")

    def _answers(self) -> bool:
        assert self.process
        if self.process.poll() is not None:
            own = [line for line in self.log.read_text().splitlines() if line.startswith("[") or "Error" in line]
            said = "\n".join(line for line in own if "ECONNREFUSED" not in line)  # the proxy's, at each look
            raise AssertionError(f"the hub ended:\n{said[-3000:]}")
        try:
            return requests.get(f"{self.url}/hub/login", timeout=5).ok
        except requests.RequestException:
            return False

    def user(self, name: str) -> HubUser:
        user = HubUser(self.url, name, PASSWORD)
        user.login()
        return user

    def crash(self) -> None:
        """kill -9 the hub, its proxy and its services."""
        assert self.process
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._end_proxy(signal.SIGKILL)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._end_proxy(signal.SIGTERM)  # the hub was killed and its proxy lived on

    def _end_proxy(self, how: signal.Signals) -> None:
        proxy = self.root / "proxy.pid"
        if proxy.exists():
            try:
                os.kill(int(proxy.read_text()), how)
            except (ProcessLookupError, ValueError):
                pass
            if how == signal.SIGKILL:
                proxy.unlink()


def with_service(node: Node, extra: str) -> Hub:
    """A hub whose config sets up the service; `{root}` in it is the node's directory."""
    made = Hub(node, extra.replace("{root}", str(node.root)))
    wait_until(lambda: requests.get(f"{made.url}/services/vgpu/health", timeout=5).ok, 30, "the service answers")
    return made


class Admin:
    """A user's session with the service's pages and API."""

    def __init__(self, hub: Hub, name: str = "dean") -> None:
        self.user: HubUser = hub.user(name)
        self.base = f"{hub.url}/services/vgpu/"
        self.get()  # through the hub's login to the service, if it lets this user in

    def get(self, path: str = "") -> requests.Response:
        return self.user.session.get(self.base + path, timeout=30)

    def page(self, path: str = "") -> str:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, path: str, **form: str) -> requests.Response:
        found = re.search(r'name="_xsrf" value="([^"]+)"', self.page())
        assert found
        return self.user.session.post(self.base + path, data={"_xsrf": found[1], **form}, timeout=30)

    def person(self, name: str) -> dict[str, Any]:
        state = self.get("api/state")
        assert state.status_code == 200, state.text
        users: list[dict[str, Any]] = state.json()["users"]
        return next(user for user in users if user["name"] == name)
