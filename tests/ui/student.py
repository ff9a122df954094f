"""A student with a server and notebooks that hold GPU memory, driven without a browser."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import requests
from playwright.sync_api import Browser, Page, expect
from requests import HTTPError
from support.node import wait_until
from support.programs import CONTEXT
from ui import PASSWORD, Demo, HubUser, new_page

from jupyter_vgpu.client import MAINTENANCE_PATH

MIB = 1 << 20
GPU = (
    CONTEXT
    + """
def take(mib):
    return driver.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(mib << 20))
"""
)
OUT_OF_MEMORY = "2\n"


class Student:
    """Alice with a server of 2 GiB and 50 %, and kernels in it."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.user = HubUser(demo.url, "alice", PASSWORD)
        self.user.login()
        self.user.spawn("2GiB-50")
        self._kernels: dict[str, str] = {}
        self._admin: dict[str, str] | None = None
        self._pool = ThreadPoolExecutor(4)  # Playwright has this thread's event loop

    def start(self, path: str, mib: int, cell: str = "") -> None:
        """Open a notebook whose kernel holds so much, with its context of 64 MiB; 0: it does not use the GPU."""
        code = {"cell_type": "code", "source": cell, "metadata": {}, "id": "a", "outputs": [], "execution_count": None}
        notebook = {"cells": [code], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        self.user.put(f"api/contents/{path}", {"type": "notebook", "format": "json", "content": notebook})
        self._kernels[path] = self.user.open_notebook(path)["kernel"]["id"]
        if mib:
            assert self.run(path, GPU + f"print(take({mib}))") == "0\n"

    def has(self, path: str) -> bool:
        return any(each["name"] == path for each in self.user.get("api/contents")["content"])

    def later(self, path: str, code: str) -> Future[str]:
        return self._pool.submit(self.user.execute, self._kernels[path], code)

    def run(self, path: str, code: str) -> str:
        return self.later(path, code).result(60)

    def daemon(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = self.demo.daemon().request(method, "/api/tenants/alice%2F", body)
        return answer

    def allow(self, **rule: Any) -> None:
        """What alice may have, as an admin says it by the service's API; nothing: what the config says."""
        if self._admin is None:
            dean = HubUser(self.demo.url, "dean", PASSWORD)
            dean.login()
            self._admin = {"Authorization": f"token {dean.token()}"}
        url = f"{self.demo.url}/services/vgpu/api/users/alice/quota"
        requests.put(url, json=rule, headers=self._admin, timeout=30).raise_for_status()

    def maintenance(self, message: str) -> None:
        """As the admin says it; empty: it is over."""
        body = {"message": message} if message else None
        self.demo.daemon().request("PUT" if message else "DELETE", MAINTENANCE_PATH, body)

    def used(self) -> int:
        """MiB, as the ledger says."""
        return int(self.daemon("GET")["usage"]["memory"]) // MIB

    def log_in(self, page: Page) -> None:
        """With the cookies of this session."""
        cookies = [
            {"name": cookie.name, "value": cookie.value or "", "domain": "127.0.0.1", "path": cookie.path}
            for cookie in self.user.session.cookies
        ]
        page.context.add_cookies(cookies)  # type: ignore[arg-type]

    def set_language(self, locale: str) -> None:
        """JupyterLab's, from its next start on."""
        settings = {"raw": f'{{"locale": "{locale}"}}'}
        self.user.put("lab/api/settings/@jupyterlab/translation-extension:plugin", settings)

    def end_all(self) -> None:
        wait_until(self._end, 20, "nothing runs and nothing is held")

    def _end(self) -> bool:
        sessions = self.user.get("api/sessions")
        for session in sessions:
            with suppress(HTTPError):  # a kernel that is being restarted can't be ended yet
                self.user.delete(f"api/sessions/{session['id']}")
        return not sessions and self.used() == 0


def open_lab(browser: Browser, student: Student, theme: str = "light") -> Page:
    """JupyterLab of that student, with the panel open. theme: `light`, `dark` or `dark-high-contrast`."""
    page = new_page(browser, color_scheme="light" if theme == "light" else "dark")
    student.log_in(page)
    name = theme.replace("-", " ").title()
    themes = {"raw": f'{{"theme": "JupyterLab {name}"}}'}
    student.user.put("lab/api/settings/@jupyterlab/apputils-extension:themes", themes)
    page.goto(f"{student.demo.url}/user/alice/lab?reset")
    page.get_by_role("tab", name="GPU slice").click()
    expect(panel_of(page)).to_contain_text("of 2 GiB")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", str(theme == "light").lower())
    return page


def panel_of(page: Page) -> Any:
    return page.locator("#jupyter-vgpu-panel")
