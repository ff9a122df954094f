"""The admin page in a real browser: live, without JavaScript, light and dark, and accessible."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect
from support.node import wait_until
from ui import PASSWORD, Demo, HubUser, log_in, new_page, shot, violations

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

GIB = 1 << 30


@pytest.fixture(scope="module")
def slices(demo: Demo) -> Iterator[None]:
    """Of two servers."""
    users = [HubUser(demo.url, name, PASSWORD) for name in ("alice", "bob")]
    for user, choice in zip(users, ("2GiB-50", "1GiB-25"), strict=True):
        user.login()
        user.spawn(choice)
    yield
    for user in users:
        user.stop()


@pytest.fixture(params=["light", "dark"])
def admin(request: pytest.FixtureRequest, browser: Browser, demo: Demo, slices: None) -> Iterator[Page]:
    page = new_page(browser, color_scheme=request.param)
    log_in(page, demo, "dean")
    page.goto(f"{demo.url}/services/vgpu/")
    yield page
    page.context.close()


def test_the_admin_sees_who_holds_what_and_it_follows_by_itself(admin: Page, demo: Demo) -> None:
    expect(admin.get_by_role("img", name="Memory: 3 GiB of 8 GiB promised, 5 GiB free")).to_be_visible()
    expect(admin.get_by_role("img", name="Compute: 75 % of 100 % promised, 25 % free")).to_be_visible()
    bars = admin.locator("svg.vgpu-bar").first.locator(".vgpu-slice")
    assert [float(bar.get_attribute("width") or 0) for bar in bars.all()] == [250, 125]  # to scale
    expect(admin.get_by_role("row", name="bob")).to_contain_text("bob/ on GPU 0: 0 B of 1 GiB, 0 % of 25 %")
    shot(admin, "admin-dark" if admin.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "admin")
    demo.daemon().request("PATCH", "/api/tenants/bob%2F", {"memory": "2G"})
    expect(admin.get_by_role("img", name="Memory: 4 GiB of 8 GiB promised, 4 GiB free")).to_be_visible(timeout=10_000)
    expect(admin.get_by_role("row", name="bob")).to_contain_text("0 B of 2 GiB")  # and so does the table
    demo.daemon().request("PATCH", "/api/tenants/bob%2F", {"memory": "1G"})
    expect(admin.get_by_role("img", name="Memory: 3 GiB of 8 GiB promised, 5 GiB free")).to_be_visible(timeout=10_000)


def test_the_pages_have_no_accessibility_violations(admin: Page, demo: Demo) -> None:
    assert violations(admin) == []
    admin.goto(f"{demo.url}/services/vgpu/audit")
    assert violations(admin) == []
    admin.goto(f"{demo.url}/services/vgpu/nowhere")
    assert violations(admin) == []


def test_a_quota_is_changed_in_the_row_and_stands_in_the_audit_log(admin: Page) -> None:
    admin.get_by_label("Memory of bob").fill("3G")
    admin.get_by_role("button", name="Save the quota of bob").click()
    expect(admin.get_by_role("status")).to_have_text("The quota of bob is changed.")
    expect(admin.get_by_label("Memory of bob")).to_have_value("3G")
    expect(admin.get_by_role("row", name="bob")).to_contain_text("3 GiB (user)")
    admin.reload()  # does not send the form again
    expect(admin.get_by_role("row", name="bob")).to_contain_text("3 GiB (user)")
    expect(admin.get_by_role("status")).to_have_count(0)
    admin.get_by_label("Memory of bob").fill("a lot")
    admin.get_by_label("GPU-hours of bob").fill("7")
    admin.get_by_role("button", name="Save the quota of bob").click()
    expect(admin.get_by_role("alert")).to_contain_text("Nothing was changed for bob: memory='a lot' is not a size")
    expect(admin.get_by_label("Memory of bob")).to_have_value("a lot")  # what was typed is not lost
    expect(admin.get_by_label("GPU-hours of bob")).to_have_value("7")
    expect(admin.get_by_label("Memory of bob")).to_be_focused()  # and the admin goes on there
    expect(admin.get_by_label("Memory of bob")).to_have_attribute("aria-invalid", "true")
    admin.get_by_role("link", name="Audit log").click()
    for word in ("dean", "bob", "memory", "3 GiB"):
        expect(admin.get_by_role("row").nth(1)).to_contain_text(word)


def test_users_are_filtered_and_fit_on_a_narrow_page(admin: Page, demo: Demo) -> None:
    admin.get_by_label("Which users").select_option("With a slice now")
    admin.get_by_role("button", name="Find").click()
    expect(admin.get_by_text("2 of 3 users.")).to_be_visible()
    expect(admin.get_by_role("row", name="dean")).to_have_count(0)
    admin.get_by_label("Memory of alice").fill("a lot")
    admin.get_by_role("button", name="Save the quota of alice").click()
    expect(admin.get_by_label("Which users")).to_have_value("slice")  # the page stays that
    for width in (800, 480):
        admin.set_viewport_size({"width": width, "height": 900})
        assert admin.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert admin.evaluate(
            "[...document.querySelectorAll('.table-responsive')].every(e => e.scrollWidth <= e.clientWidth)"
        )
        expect(admin.get_by_role("row", name="alice")).to_contain_text("alice/ on GPU 0")
        assert violations(admin) == []
        shot(admin, f"admin-{width}")


def test_a_server_is_stopped_when_that_was_meant(browser: Browser, demo: Demo, slices: None) -> None:
    page = new_page(browser)
    log_in(page, demo, "dean")
    page.goto(f"{demo.url}/services/vgpu/")
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        (dialog.dismiss if len(asked) == 1 else dialog.accept)()

    page.on("dialog", answer)
    page.get_by_role("button", name="Stop bob/").click()
    page.wait_for_timeout(2000)  # in which it would be stopped
    assert "bob/" in [each["name"] for each in demo.daemon().request("GET", "/api/tenants")["tenants"]]
    page.get_by_role("button", name="Stop bob/").click()
    expect(page.get_by_role("status")).to_have_text("The server bob/ is being stopped.")
    assert asked == ["Stop bob/? What runs in it ends."] * 2
    expect(page.get_by_role("button", name="Stop bob/")).to_have_count(0, timeout=15_000)  # without a reload
    page.context.close()
    bob = HubUser(demo.url, "bob", PASSWORD)
    bob.login()
    wait_until(lambda: not bob.model()["servers"], 60, "it is stopped")
    bob.spawn("1GiB-25")


def test_it_works_without_javascript(browser: Browser, demo: Demo, slices: None) -> None:
    page = new_page(browser, java_script_enabled=False)
    log_in(page, demo, "dean")
    page.goto(f"{demo.url}/services/vgpu/")
    page.get_by_label("User or group").fill("ali")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_text("1 of 3 users.")).to_be_visible()
    page.get_by_label("Percent of compute of alice").fill("75")
    page.get_by_role("button", name="Save the quota of alice").click()
    expect(page.get_by_role("row", name="alice")).to_contain_text("75 % (user)")
    page.context.close()


def test_a_user_is_led_to_the_own_place_in_the_queue_and_to_nothing_of_the_admins(browser: Browser, demo: Demo) -> None:
    page = new_page(browser)
    log_in(page, demo, "alice")
    page.goto(f"{demo.url}/services/vgpu/")  # where the hub's menu leads
    expect(page).to_have_url(f"{demo.url}/services/vgpu/queue")
    expect(page.get_by_role("heading", name="Your place in the GPU queue")).to_be_visible()
    expect(page.get_by_role("link", name="Audit log")).to_have_count(0)
    answer = page.goto(f"{demo.url}/services/vgpu/audit")
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("link", name="Your place in the queue").last).to_be_visible()
    page.context.close()
