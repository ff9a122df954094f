"""A user of a hub without a browser: through the hub's own pages, as a browser would go."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from typing import Any

import requests
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

Json = dict[str, Any]


class HubUser:
    """One user's browser session."""

    def __init__(self, url: str, name: str, password: str) -> None:
        self.url, self.name, self._password = url, name, password
        self.session = requests.Session()
        self._token = ""

    def xsrf(self, path: str) -> str | None:
        """The token for forms below a path, if there is one yet."""
        return next(
            (cookie.value for cookie in self.session.cookies if (cookie.name, cookie.path) == ("_xsrf", path)), None
        )

    def _xsrf(self, path: str) -> str:
        return next(cookie.value for cookie in self.session.cookies if cookie.name == "_xsrf" and cookie.path == path)  # type: ignore[return-value]

    def login(self) -> None:
        """Through the login page."""
        self.session.get(f"{self.url}/hub/login", timeout=20).raise_for_status()
        form = {"_xsrf": self._xsrf("/hub/"), "username": self.name, "password": self._password}
        answer = self.session.post(f"{self.url}/hub/login", data=form, timeout=20, allow_redirects=False)
        if answer.status_code != 302:
            raise AssertionError(f"login of {self.name} answered {answer.status_code}")

    def spawn_page(self) -> str:
        """The HTML of the spawn page."""
        answer = self.session.get(f"{self.url}/hub/spawn/{self.name}", timeout=20)
        answer.raise_for_status()
        return answer.text

    def spawn(self, choice: str, seconds: float = 90) -> None:
        """Choose a slice on the spawn page and wait until the server is up. Raises with the page's own words."""
        self.spawn_page()
        url = f"{self.url}/hub/spawn/{self.name}?_xsrf={self._xsrf('/hub/')}"
        answer = self.session.post(url, data={"gpu_slice": choice}, timeout=60, allow_redirects=False)
        if answer.status_code != 302:
            raise AssertionError(error_on(answer.text))
        end = time.monotonic() + seconds
        while True:
            server = self.model()["servers"].get("", {})
            if server.get("ready"):
                break
            if time.monotonic() > end or not (server or self.model().get("pending")):
                page = self.session.get(f"{self.url}/hub/spawn-pending/{self.name}", timeout=20)
                raise AssertionError(f"the server of {self.name} is not up: {error_on(page.text)}")
            time.sleep(0.2)
        # the server's own login, for its cookies
        self.session.get(f"{self.url}/user/{self.name}/lab", timeout=60).raise_for_status()

    def token(self) -> str:
        """A new API token with all that the user may do."""
        url = f"{self.url}/hub/api/users/{self.name}/tokens"
        answer = self.session.post(url, json={}, headers={"X-XSRFToken": self._xsrf("/hub/")}, timeout=20)
        answer.raise_for_status()
        return str(answer.json()["token"])

    def model(self) -> Json:
        answer = self.session.get(f"{self.url}/hub/api/users/{self.name}", timeout=20)
        answer.raise_for_status()
        model: Json = answer.json()
        return model

    def ask_to_stop(self) -> None:
        """Stop the server, which takes its time; who waits in the queue may have another at once."""
        url = f"{self.url}/hub/api/users/{self.name}/server"
        headers = {"X-XSRFToken": self._xsrf("/hub/")}
        answer = self.session.delete(url, headers=headers, timeout=60)
        answer.raise_for_status()

    def stop(self, seconds: float = 60) -> None:
        """Stop the server and wait until it is gone."""
        self.ask_to_stop()
        end = time.monotonic() + seconds
        while "" in self.model()["servers"]:
            if time.monotonic() > end:
                raise AssertionError(f"the server of {self.name} does not stop")
            time.sleep(0.2)

    def get(self, path: str) -> Any:
        """GET from the user's own server."""
        answer = self.session.get(f"{self.url}/user/{self.name}/{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def _send(self, method: str, path: str, body: Json | None = None) -> Any:
        headers = {"X-XSRFToken": self._xsrf(f"/user/{self.name}/")}
        url = f"{self.url}/user/{self.name}/{path}"
        answer = self.session.request(method, url, json=body, headers=headers, timeout=60)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def put(self, path: str, body: Json) -> Any:
        """PUT to the user's own server."""
        return self._send("PUT", path, body)

    def delete(self, path: str) -> Any:
        """DELETE at the user's own server."""
        return self._send("DELETE", path)

    def open_notebook(self, path: str) -> Json:
        """A session for a notebook, with its kernel."""
        kernel = {"name": "python3"}
        session: Json = self._send(
            "POST", "api/sessions", {"path": path, "type": "notebook", "name": path, "kernel": kernel}
        )
        return session

    def run_notebook(self, path: str, seconds: float = 120) -> tuple[Json, list[str]]:
        """Run a notebook's code cells in a kernel of the user's server; returns the session and each cell's text."""
        notebook = self.get(f"api/contents/{path}?content=1")["content"]
        session = self.open_notebook(path)
        cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return session, [self.execute(session["kernel"]["id"], code, seconds) for code in cells]

    def execute(self, kernel: str, code: str, seconds: float = 120) -> str:
        """Run code in a kernel; returns what it printed. Raises with its traceback."""
        return asyncio.run(asyncio.wait_for(self._execute(kernel, code), seconds))

    async def _execute(self, kernel: str, code: str) -> str:
        url = f"{self.url}/user/{self.name}/api/kernels/{kernel}/channels".replace("http", "ws", 1)
        path = f"/user/{self.name}/"
        cookies = "; ".join(f"{c.name}={c.value}" for c in self.session.cookies if c.path in (path, "/"))
        connection = await websocket_connect(HTTPRequest(url, headers={"Cookie": cookies}))
        message_id = uuid.uuid4().hex
        header = {
            "msg_id": message_id,
            "username": "",
            "session": uuid.uuid4().hex,
            "msg_type": "execute_request",
            "version": "5.3",
            "date": "",
        }
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        await connection.write_message(
            json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"})
        )
        text, idle, replied = "", False, False
        try:
            while not (idle and replied):
                raw = await connection.read_message()
                if raw is None:
                    raise AssertionError("the kernel's connection closed")
                message = json.loads(raw)
                if message["parent_header"].get("msg_id") != message_id:
                    continue
                kind, body = message["header"]["msg_type"], message["content"]
                if kind == "stream":
                    text += body["text"]
                elif kind == "error":
                    raise AssertionError("\n".join(body["traceback"]))
                idle = idle or (kind == "status" and body["execution_state"] == "idle")
                replied = replied or kind == "execute_reply"
        finally:
            connection.close()
        return text


def error_on(page: str) -> str:
    """The words of an error on one of the hub's pages."""
    found = re.search(r'class="[^"]*(?:spawn-error-msg|text-danger|alert-danger)[^"]*"[^>]*>(.*?)</', page, re.DOTALL)
    text = found[1] if found else page
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).strip()[:500]
