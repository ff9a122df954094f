"""The demo in a real browser: login, spawn page, notebook and panel."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect
from support.node import wait_until
from ui import Demo, log_in, shot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


def test_login_spawn_page_notebook_and_panel(page: Page, demo: Demo) -> None:
    log_in(page, demo, "alice")
    expect(page.get_by_label("1 GiB of GPU memory, 25 % of its compute")).to_be_checked()
    expect(page.get_by_label("No GPU")).to_be_visible()
    shot(page, "spawn")
    page.emulate_media(color_scheme="dark")
    page.reload()
    shot(page, "spawn-dark")
    page.emulate_media(color_scheme="light")
    page.reload()
    page.get_by_role("button", name="Start").click()

    page.wait_for_selector(".jp-Notebook", timeout=90_000)
    wait_until(lambda: page.locator(".jp-Dialog").count() == 0, 30, "no dialog is in the way")
    panel = page.locator("#jupyter-vgpu-panel")
    page.get_by_role("tab", name="GPU slice").click()
    expect(panel).to_be_visible()
    expect(panel).to_contain_text("of 1 GiB")
    expect(panel).to_contain_text("of 25 %")
    expect(panel).to_contain_text("Nobody uses the GPU now.")

    # a kernel that is still starting drops what it is asked to run
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=60_000)
    page.get_by_role("menuitem", name="Run").click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(page.locator(".jp-OutputArea-output").get_by_text("the kernel's result is right")).to_be_visible(
        timeout=60_000
    )
    expect(page.locator(".jp-OutputArea-output").get_by_text("then CUDA_ERROR_OUT_OF_MEMORY")).to_be_visible(
        timeout=60_000
    )

    # context of 64 MiB, three buffers of 2 MiB, two blocks of 128 MiB
    expect(panel.get_by_role("meter", name="Memory")).to_have_attribute("aria-valuetext", "326 MiB of 1 GiB")
    row = panel.get_by_role("listitem").filter(has=page.get_by_role("button", name="quickstart.ipynb", exact=True))
    expect(row).to_contain_text("326 MiB")
    expect(panel).to_contain_text("Held by the guard: never more than your share.")
    expect(panel).to_contain_text("Emulated vGPU device 0")
    page.wait_for_timeout(1000)  # what is told slides in
    shot(page, "panel")

    row.get_by_role("button", name="quickstart.ipynb", exact=True).click()
    expect(page.locator(".jp-Notebook").first).to_be_visible()


def test_a_live_resize_is_seen_and_a_lost_daemon_says_so(page: Page, demo: Demo) -> None:
    log_in(page, demo, "bob")
    page.get_by_label("2 GiB of GPU memory, 50 % of its compute").check()
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector(".jp-Notebook", timeout=90_000)
    page.get_by_role("tab", name="GPU slice").click()
    panel = page.locator("#jupyter-vgpu-panel")
    expect(panel).to_contain_text("of 2 GiB")
    daemon = demo.daemon()
    daemon.request("PATCH", "/api/tenants/bob%2F", {"memory": "3G", "cores": 10})
    expect(panel).to_contain_text("of 3 GiB", timeout=10_000)
    expect(panel).to_contain_text("of 10 %")
    daemon.request("DELETE", "/api/tenants/bob%2F")
    expect(panel).to_contain_text("The GPU service does not answer now", timeout=15_000)


def test_what_was_taken_while_the_spawn_page_was_open_is_waited_for(page: Page, demo: Demo) -> None:
    context = page.context
    context.clear_cookies()
    log_in(page, demo, "bob")
    daemon = demo.daemon()
    if "spawn" not in page.url:  # bob's server of the test before
        # its buttons do nothing before their script is there
        page.goto(f"{demo.url}/hub/home", wait_until="networkidle")
        page.get_by_role("button", name=re.compile("Stop My Server")).click()
        page.get_by_role("button", name=re.compile("Start My Server")).click()
    page.get_by_label("4 GiB of GPU memory, 50 % of its compute").check()
    daemon.request("POST", "/api/tenants", {"name": "somebody", "memory": "6G", "cores": 20})
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("You are number 1 of those who wait")).to_be_visible()
    page.get_by_role("link", name="start without a GPU meanwhile").click()
    expect(page.get_by_text("You wait for 4 GiB of GPU memory, 50 % of its compute")).to_be_visible()
    shot(page, "spawn-full")
    page.get_by_role("link", name="see when your turn comes").click()
    page.get_by_role("button", name="Leave the queue").click()
    expect(page.get_by_text("You wait no more.")).to_be_visible()
    daemon.request("DELETE", "/api/tenants/somebody")
