"""The student's side in a real browser: the panel, the status bar, and what is told of what happens to the slice."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from support.node import wait_until
from support.programs import CONTEXT
from ui import PASSWORD, Demo, HubUser, new_page, shot, violations

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

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
        self._pool = ThreadPoolExecutor(4)  # Playwright has this thread's event loop

    def start(self, path: str, mib: int) -> None:
        """Open a notebook whose kernel holds so much, with its context of 64 MiB; 0: it does not use the GPU."""
        notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        self.user.put(f"api/contents/{path}", {"type": "notebook", "format": "json", "content": notebook})
        self._kernels[path] = self.user.open_notebook(path)["kernel"]["id"]
        if mib:
            assert self.run(path, GPU + f"print(take({mib}))") == "0\n"

    def later(self, path: str, code: str) -> Future[str]:
        return self._pool.submit(self.user.execute, self._kernels[path], code)

    def run(self, path: str, code: str) -> str:
        return self.later(path, code).result(60)

    def daemon(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = self.demo.daemon().request(method, "/api/tenants/alice%2F", body)
        return answer

    def used(self) -> int:
        """MiB, as the ledger says."""
        return int(self.daemon("GET")["usage"]["memory"]) // MIB

    def end_all(self) -> None:
        for session in self.user.get("api/sessions"):
            self.user.delete(f"api/sessions/{session['id']}")
        wait_until(lambda: self.used() == 0, 10, "nothing is held")


@pytest.fixture(scope="module")
def server(demo: Demo) -> Iterator[Student]:
    made = Student(demo)
    yield made
    made.user.stop()


@pytest.fixture
def student(server: Student) -> Iterator[Student]:
    yield server
    server.end_all()


@pytest.fixture(params=["light"])
def lab(request: pytest.FixtureRequest, browser: Browser, demo: Demo, server: Student) -> Iterator[Page]:
    """JupyterLab with the panel open."""
    page = new_page(browser, color_scheme=request.param)
    cookies = [
        {"name": cookie.name, "value": cookie.value or "", "domain": "127.0.0.1", "path": cookie.path}
        for cookie in server.user.session.cookies
    ]
    page.context.add_cookies(cookies)  # type: ignore[arg-type]
    theme = {"raw": f'{{"theme": "JupyterLab {str(request.param).title()}"}}'}
    server.user.put("lab/api/settings/@jupyterlab/apputils-extension:themes", theme)
    page.goto(f"{demo.url}/user/alice/lab?reset")
    page.get_by_role("tab", name="GPU slice").click()
    expect(panel_of(page)).to_contain_text("of 2 GiB")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", str(request.param == "light").lower())
    yield page
    page.context.close()


def panel_of(page: Page) -> Any:
    return page.locator("#jupyter-vgpu-panel")


def row_of(page: Page, name: str) -> Any:
    return panel_of(page).get_by_role("listitem").filter(has=page.get_by_role("button", name=name, exact=True))


def test_each_notebook_has_its_row_by_what_it_holds_and_does(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 512)
    student.start("old.ipynb", 1024)
    student.start("text.ipynb", 0)
    expect(row_of(lab, "train.ipynb")).to_contain_text("576 MiB")
    expect(row_of(lab, "old.ipynb")).to_contain_text("1.06 GiB")
    expect(row_of(lab, "text.ipynb")).to_contain_text("does not use the GPU")
    names = panel_of(lab).locator(".jp-vgpu-Holders .jp-vgpu-Link")
    expect(names).to_have_text(["old.ipynb", "train.ipynb", "text.ipynb"])
    expect(lab.get_by_role("button", name=re.compile("^GPU 1.63 GiB of 2 GiB, "))).to_have_attribute(
        "data-level", "high"
    )
    row_of(lab, "train.ipynb").get_by_role("button", name="train.ipynb", exact=True).click()
    expect(lab.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")).to_be_visible()
    expect(lab.get_by_role("main").get_by_role("tab", name="train.ipynb")).to_be_visible()
    shot(lab, "panel-rows")


def test_out_of_memory_is_explained_with_two_ways_out_that_work(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 512)
    student.start("old.ipynb", 1024)
    expect(row_of(lab, "old.ipynb")).to_contain_text("1.06 GiB")
    asked = time.monotonic()
    assert student.run("train.ipynb", "print(take(1024))") == OUT_OF_MEMORY
    words = "train.ipynb asked for 1 GiB of GPU memory; 384 MiB was free. In use by: old.ipynb (1.06 GiB), train.ipynb"
    told = lab.locator(".Toastify__toast").filter(has_text=words)
    expect(told).to_be_visible()
    assert time.monotonic() - asked < 3  # the notebook's own answer came back in between
    expect(told.get_by_role("button")).to_contain_text(["Shut down old.ipynb", "Restart train.ipynb"])
    expect(panel_of(lab).get_by_role("heading", name="Out of memory")).to_be_visible()
    expect(panel_of(lab).locator(".jp-vgpu-Refusals li")).to_contain_text([words])
    lab.wait_for_timeout(1000)  # it slides in
    shot(lab, "out-of-memory")
    told.get_by_role("button", name="Shut down old.ipynb").click()
    lab.locator(".jp-Dialog").get_by_role("button", name="Shut down old.ipynb").click()
    wait_until(lambda: student.used() == 576, 10, "what the other held is free in the ledger")
    expect(row_of(lab, "old.ipynb")).to_have_count(0)
    assert student.run("train.ipynb", "print(take(1024))") == "0\n"


def test_a_restart_from_the_row_frees_the_memory_and_is_asked_about_first(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 512)
    button = row_of(lab, "train.ipynb").get_by_role("button", name="Restart kernel of train.ipynb")
    button.click()
    lab.locator(".jp-Dialog").get_by_role("button", name="Cancel").click()
    expect(row_of(lab, "train.ipynb")).to_contain_text("576 MiB")
    assert student.used() == 576
    button.click()
    lab.locator(".jp-Dialog").get_by_role("button", name="Restart kernel of train.ipynb").click()
    wait_until(lambda: student.used() == 0, 10, "the ledger is empty")
    expect(row_of(lab, "train.ipynb")).to_contain_text("does not use the GPU")


def test_what_runs_is_interrupted_from_the_row(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 64)
    endless = student.later(
        "train.ipynb", "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('stopped')"
    )
    row_of(lab, "train.ipynb").get_by_role("button", name="Interrupt train.ipynb").click()
    assert endless.result(20) == "stopped\n"
    assert student.used() == 128


def test_more_than_the_whole_slice_is_called_that(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 64)
    assert student.run("train.ipynb", "print(take(3000))") == OUT_OF_MEMORY
    words = "train.ipynb asked for 2.93 GiB of GPU memory. That is more than your whole slice."
    told = lab.locator(".Toastify__toast").filter(has_text=words)
    expect(told).to_be_visible()
    expect(panel_of(lab)).to_contain_text("Use less, or start the server with a larger slice.")
    expect(told.get_by_role("button", name="Show GPU Slice")).to_be_visible()
    expect(told.get_by_role("button", name=re.compile("Restart|Shut down"))).to_have_count(0)


def test_a_changed_quota_is_seen_and_told_once(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 1024)
    expect(row_of(lab, "train.ipynb")).to_contain_text("1.06 GiB")
    student.daemon("PATCH", {"memory": "1G", "cores": 25})
    try:
        expect(panel_of(lab)).to_contain_text("of 1 GiB", timeout=2000)
        toasts = lab.locator(".Toastify__toast")
        expect(
            toasts.filter(has_text="Your GPU slice was changed: 1 GiB of memory and 25 % of compute now")
        ).to_have_count(1)
        expect(toasts.filter(has_text="Your programs hold 64 MiB more than your GPU slice has now")).to_have_count(1)
        status = lab.get_by_role("button", name=re.compile("^GPU 1.06 GiB of 1 GiB, "))
        expect(status).to_have_attribute("data-level", "full")
    finally:
        student.daemon("PATCH", {"memory": "2G", "cores": 50})


def test_a_page_that_nobody_sees_asks_for_nothing(student: Student, lab: Page) -> None:
    asked: list[str] = []
    lab.on("request", lambda request: asked.append(request.url) if "/vgpu/" in request.url else None)
    wait_until(lambda: lab.wait_for_timeout(200) or len(asked) >= 2, 10, "it asks while it is seen")
    hide = "hidden => { Object.defineProperty(document, 'visibilityState', {value: hidden ? 'hidden' : 'visible', configurable: true}); document.dispatchEvent(new Event('visibilitychange')); }"
    lab.evaluate(hide, True)
    lab.wait_for_timeout(2500)
    asked.clear()
    lab.wait_for_timeout(4000)
    assert asked == []
    student.start("train.ipynb", 64)
    lab.evaluate(hide, False)
    expect(row_of(lab, "train.ipynb")).to_contain_text("128 MiB")


@pytest.mark.parametrize("lab", ["light", "dark"], indirect=True)
def test_panel_and_status_bar_are_accessible(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 512)
    assert student.run("train.ipynb", "print(take(3000))") == OUT_OF_MEMORY
    expect(panel_of(lab).get_by_role("heading", name="Out of memory")).to_be_visible()
    assert violations(lab, "#jupyter-vgpu-panel") == []
    assert violations(lab, ".jp-vgpu-Status") == []


def test_it_is_found_in_the_command_palette(lab: Page) -> None:
    lab.get_by_role("tab", name="GPU slice").click()  # closes it
    expect(panel_of(lab)).to_be_hidden()
    lab.keyboard.press("Control+Shift+C")
    lab.locator(".lm-CommandPalette-input").fill("show gpu slice")
    lab.keyboard.press("Enter")
    expect(panel_of(lab)).to_be_visible()
