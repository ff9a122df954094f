"""The queue in a real browser: chosen on the spawn page, followed by itself, accessible, and without JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from student import panel_of
from ui import Demo, log_in, new_page, shot, violations

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


@pytest.fixture
def full(demo: Demo) -> Iterator[dict[str, Any]]:
    """Somebody's slice that leaves room for nobody."""
    made = demo.daemon().request("POST", "/api/tenants", {"name": "somebody", "memory": "8G", "cores": 100})
    yield made
    if any(each["id"] == made["id"] for each in demo.daemon().request("GET", "/api/tenants")["tenants"]):
        demo.daemon().request("DELETE", f"/api/tenants/{made['id']}")


def wait_in_queue(page: Page, demo: Demo, user: str) -> None:
    log_in(page, demo, user)
    expect(page.get_by_text("in use by others; you would wait in the queue").first).to_be_visible()
    page.get_by_role("radio", name="1 GiB of GPU memory").check()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/services/vgpu/queue")


def stop_server(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.url}/hub/home")
    page.get_by_role("button", name="Stop My Server").click()
    expect(page.get_by_role("button", name="Start My Server")).to_be_visible(timeout=60_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_user_waits_sees_the_place_and_leaves(
    browser: Browser, demo: Demo, full: dict[str, Any], scheme: Any
) -> None:
    page = new_page(browser, color_scheme=scheme)
    wait_in_queue(page, demo, "alice")
    expect(page.get_by_text("You are number 1 of those who wait")).to_be_visible()
    expect(page).to_have_title("Number 1 in the GPU queue")
    assert violations(page) == []
    shot(page, "queue" if scheme == "light" else "queue-dark")
    admin = new_page(browser, color_scheme=scheme)
    log_in(admin, demo, "dean")
    admin.goto(f"{demo.url}/services/vgpu/")
    expect(admin.get_by_role("row", name="alice/")).to_contain_text("1 GiB, 25 % hard")
    assert violations(admin) == []
    page.goto(f"{demo.url}/hub/spawn")
    expect(page.get_by_role("link", name="see when your turn comes")).to_be_visible()
    assert violations(page, ".vgpu-slices") == []  # the rest is the hub's own
    shot(page, f"spawn-queue-{scheme}")
    page.get_by_role("link", name="see when your turn comes").click()
    page.get_by_role("button", name="Leave the queue").click()
    expect(page.get_by_text("You wait no more.")).to_be_visible()
    expect(page.get_by_role("link", name="Start a server")).to_be_visible()
    # the admin's page follows by itself
    expect(admin.get_by_role("row", name="alice/")).to_have_count(0, timeout=10_000)
    admin.context.close()
    page.context.close()


def test_a_tab_that_nobody_looks_at_says_when_it_is_its_turn(
    browser: Browser, demo: Demo, full: dict[str, Any]
) -> None:
    page = new_page(browser)
    wait_in_queue(page, demo, "alice")
    expect(page).to_have_title("Number 1 in the GPU queue")
    page.evaluate(
        "() => { Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }"
    )
    demo.daemon().request("DELETE", f"/api/tenants/{full['id']}")
    page.wait_for_url("**/user/alice/**", timeout=90_000)
    stop_server(page, demo)
    page.context.close()


def test_when_the_turn_comes_the_page_goes_to_the_server(browser: Browser, demo: Demo, full: dict[str, Any]) -> None:
    page = new_page(browser)
    wait_in_queue(page, demo, "bob")
    expect(page.get_by_text("You are number 1 of those who wait")).to_be_visible()
    demo.daemon().request("DELETE", f"/api/tenants/{full['id']}")
    page.wait_for_url("**/user/bob/**", timeout=90_000)
    stop_server(page, demo)
    page.context.close()


def test_who_works_without_a_gpu_meanwhile_is_told_in_jupyterlab(
    browser: Browser, demo: Demo, full: dict[str, Any]
) -> None:
    page = new_page(browser)
    wait_in_queue(page, demo, "alice")
    page.get_by_role("link", name="start without a GPU meanwhile").click()
    page.get_by_role("radio", name="No GPU").check()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/user/alice/**", timeout=90_000)
    page.get_by_role("tab", name="GPU slice").click()
    panel = panel_of(page)
    expect(panel).to_contain_text("This server was started without a GPU.")
    expect(panel).to_contain_text("You are number 1 in the queue for a GPU.", timeout=20_000)
    assert violations(page, "#jupyter-vgpu-panel") == []
    demo.daemon().request("DELETE", f"/api/tenants/{full['id']}")
    told = page.locator(".Toastify__toast").filter(has_text="A GPU is kept for you until")
    expect(told).to_contain_text("Save your work and stop your server: it starts again with the GPU.", timeout=30_000)
    expect(told).to_have_count(1)
    page.wait_for_timeout(1000)  # it slides in
    shot(page, "panel-turn")
    with page.context.expect_page() as opened:
        told.get_by_role("button", name="To the Queue").click()
    expect(opened.value.get_by_text("It is your turn.")).to_be_visible()
    opened.value.get_by_role("button", name="Leave the queue").click()
    expect(opened.value.get_by_text("You wait no more.")).to_be_visible()
    expect(panel).not_to_contain_text("A GPU is kept for you", timeout=20_000)
    expect(told).to_have_count(0)
    stop_server(page, demo)
    page.context.close()


def test_the_queue_works_without_javascript(browser: Browser, demo: Demo, full: dict[str, Any]) -> None:
    page = new_page(browser, java_script_enabled=False)
    wait_in_queue(page, demo, "alice")
    page.get_by_role("link", name="Look again").click()
    expect(page.get_by_text("You are number 1 of those who wait")).to_be_visible()
    page.get_by_role("button", name="Leave the queue").click()
    expect(page.get_by_text("You wait no more.")).to_be_visible()
    page.context.close()
