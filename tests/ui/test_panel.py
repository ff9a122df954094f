"""The student's side in a real browser: the panel, the status bar, and what is told of what happens to the slice."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from student import OUT_OF_MEMORY, Student, open_lab, panel_of
from support.node import wait_until
from support.programs import CONTEXT
from ui import Demo, Film, new_page, shot, violations

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


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
def lab(request: pytest.FixtureRequest, browser: Browser, server: Student) -> Iterator[Page]:
    page = open_lab(browser, server, request.param)
    yield page
    page.context.close()


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
    student.start("train.ipynb", 768)
    student.start("old.ipynb", 1024)
    expect(row_of(lab, "old.ipynb")).to_contain_text("1.06 GiB")
    film = Film()
    film.take(lab, 2)
    asked = time.monotonic()
    assert student.run("train.ipynb", "print(take(512))") == OUT_OF_MEMORY
    words = "train.ipynb asked for 512 MiB of GPU memory; 128 MiB was free. Most is held by old.ipynb: 1.06 GiB."
    told = lab.locator(".Toastify__toast").filter(has_text=words)
    expect(told).to_be_visible()
    assert time.monotonic() - asked < 3  # the notebook's own answer came back in between
    ways = ["Shut down old.ipynb (1.06 GiB)", "Restart train.ipynb (832 MiB)"]
    expect(told.get_by_role("button")).to_contain_text(ways)
    expect(panel_of(lab).locator(".jp-vgpu-Refusals li")).to_contain_text([words])
    expect(panel_of(lab).locator(".jp-vgpu-Ways button")).to_have_text(ways)
    lab.wait_for_timeout(1000)  # it slides in
    shot(lab, "out-of-memory")
    film.take(lab, 4)
    told.get_by_role("button", name=ways[0]).click()
    lab.locator(".jp-Dialog").get_by_role("button", name="Cancel").click()
    expect(told).to_be_visible()  # nothing was done, so what can be done is still said
    assert student.used() == 1920
    told.get_by_role("button", name=ways[0]).click()
    film.take(lab, 2)
    lab.locator(".jp-Dialog").get_by_role("button", name="Shut down old.ipynb").click()
    wait_until(lambda: student.used() == 832, 10, "what the other held is free in the ledger")
    expect(row_of(lab, "old.ipynb")).to_have_count(0)
    expect(told).to_have_count(0)
    film.take(lab, 2)
    assert student.run("train.ipynb", "print(take(512))") == "0\n"
    expect(row_of(lab, "train.ipynb")).to_contain_text("1.31 GiB")
    film.take(lab, 3)
    film.save("panel")


def test_what_was_told_of_goes_when_there_is_nothing_to_end_any_more(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 768)
    student.start("old.ipynb", 1024)
    expect(row_of(lab, "old.ipynb")).to_contain_text("1.06 GiB")
    assert student.run("train.ipynb", "print(take(512))") == OUT_OF_MEMORY
    told = lab.locator(".Toastify__toast").filter(has_text="train.ipynb asked for 512 MiB of GPU memory")
    expect(told.get_by_role("button", name="Shut down old.ipynb (1.06 GiB)")).to_be_visible()
    row_of(lab, "old.ipynb").get_by_role("button", name="Shut down", exact=False).click()
    lab.locator(".jp-Dialog").get_by_role("button", name="Shut down old.ipynb").click()
    expect(told.get_by_role("button", name="Shut down old.ipynb")).to_have_count(0)
    expect(told.get_by_role("button", name="Restart train.ipynb (832 MiB)")).to_be_visible()
    student.end_all()
    expect(told).to_have_count(0)


def test_who_is_refused_again_and_again_is_told_of_once(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 64)
    for mib in range(2500, 2508):
        assert student.run("train.ipynb", f"print(take({mib}))") == OUT_OF_MEMORY
        lab.wait_for_timeout(400)
    told = lab.locator(".Toastify__toast").filter(has_text="train.ipynb asked for 2.45 GiB of GPU memory")
    expect(told).to_have_count(1)  # the last one's words
    lab.wait_for_timeout(2500)
    assert lab.locator(".Toastify__toast").filter(has_text="train.ipynb asked for 2.4").count() == 1
    expect(panel_of(lab).locator(".jp-vgpu-Refusals li").nth(7)).to_be_visible()


def test_what_a_child_of_a_kernel_is_refused_is_its_notebooks_though_it_has_ended(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 0)
    child = CONTEXT + "print(driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(3 << 30)))"
    code = f"import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True).stdout)"
    assert student.run("train.ipynb", code).strip() == "2"
    expect(lab.locator(".Toastify__toast").filter(has_text="train.ipynb asked for 3 GiB")).to_be_visible()


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


def test_an_open_notebook_whose_kernel_is_restarted_waits_for_nothing(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 64, "import time; time.sleep(100)")
    row_of(lab, "train.ipynb").get_by_role("button", name="train.ipynb", exact=True).click()
    notebook = lab.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    notebook.locator(".jp-CodeCell .cm-content").click()
    lab.keyboard.press("Shift+Enter")
    expect(notebook.locator(".jp-InputArea-prompt").first).to_have_text("[*]:")
    row_of(lab, "train.ipynb").get_by_role("button", name="Restart kernel of train.ipynb").click()
    lab.locator(".jp-Dialog").get_by_role("button", name="Restart kernel of train.ipynb").click()
    expect(notebook.locator(".jp-InputArea-prompt").first).to_have_text("[ ]:")
    wait_until(lambda: student.used() == 0, 10, "the ledger is empty")


def test_what_runs_is_interrupted_from_the_row(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 64)
    code = "import time\ntry:\n    open('runs', 'w').close(); time.sleep(60)\nexcept KeyboardInterrupt:\n    print('stopped')"
    endless = student.later("train.ipynb", code)
    wait_until(lambda: student.has("runs"), 10, "it runs")
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
        expect(panel_of(lab)).to_contain_text("of 1 GiB", timeout=10_000)
        toasts = lab.locator(".Toastify__toast")
        expect(
            toasts.filter(has_text="Your GPU slice was changed: 1 GiB of memory and 25 % of compute now")
        ).to_have_count(1)
        expect(toasts.filter(has_text="Your programs hold 64 MiB more than your GPU slice has now")).to_have_count(1)
        lab.wait_for_timeout(2500)
        assert toasts.filter(has_text="Your GPU slice was changed").count() == 1
        status = lab.get_by_role("button", name=re.compile("^GPU 1.06 GiB of 1 GiB, "))
        expect(status).to_have_attribute("data-level", "full")
    finally:
        student.daemon("PATCH", {"memory": "2G", "cores": 50})


def test_what_an_admin_says_reaches_the_open_panel(student: Student, lab: Page) -> None:
    panel = panel_of(lab)
    try:
        student.allow(memory="1G")
        expect(panel).to_contain_text("of 1 GiB", timeout=10_000)
        student.allow(memory="2G", cores=25)
        expect(panel).to_contain_text("of 2 GiB", timeout=10_000)
        expect(panel).to_contain_text("of 25 %", timeout=10_000)
    finally:
        student.allow()
    expect(panel).to_contain_text("of 50 %", timeout=10_000)


BUSY = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support.worker import load_spin, run_spin
kernel, end = load_spin(), time.time() + 75
while time.time() < end:
    run_spin(kernel, 5)
"""


def test_who_uses_all_of_the_share_for_a_minute_is_told_why_it_is_slow(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 64)
    busy = student.later("train.ipynb", BUSY + "print('done')")
    words = "Your programs want more compute than the 50 % of your GPU slice, and are slowed down to it."
    told = lab.locator(".Toastify__toast").filter(has_text=words)
    lab.wait_for_timeout(45_000)
    assert told.count() == 0  # a moment's peak is nothing to tell of
    expect(told).to_have_count(1, timeout=30_000)
    assert busy.result(60) == "done\n"
    assert told.count() == 1


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


@pytest.mark.parametrize("lab", ["light", "dark", "dark-high-contrast"], indirect=True)
def test_panel_and_status_bar_are_accessible(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 512)
    assert student.run("train.ipynb", "print(take(3000))") == OUT_OF_MEMORY
    expect(panel_of(lab).get_by_role("heading", name="Out of memory")).to_be_visible()
    assert violations(lab, "#jupyter-vgpu-panel") == []
    assert violations(lab, ".jp-vgpu-Status") == []


def test_all_of_it_is_done_with_the_keyboard(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 512)
    expect(row_of(lab, "train.ipynb")).to_contain_text("576 MiB")
    panel_of(lab).focus()
    focused = "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    reached = []
    for _ in range(4):
        lab.keyboard.press("Tab")
        reached.append(lab.evaluate(focused))
    of = "train.ipynb"
    assert reached == [of, f"Interrupt {of}", f"Restart kernel of {of}", f"Shut down {of}"]
    lab.keyboard.press("Shift+Tab")
    lab.keyboard.press("Enter")
    expect(lab.locator(".jp-Dialog")).to_be_visible()
    lab.keyboard.press("Enter")  # what was asked for is the dialog's own button
    wait_until(lambda: student.used() == 0, 10, "the ledger is empty")


def test_a_narrow_panel_shows_all_of_it(student: Student, lab: Page) -> None:
    student.start("a-notebook-with-quite-a-long-name-of-its-own.ipynb", 512)
    assert student.run("a-notebook-with-quite-a-long-name-of-its-own.ipynb", "print(take(1600))") == OUT_OF_MEMORY
    expect(panel_of(lab).get_by_role("heading", name="Out of memory")).to_be_visible()
    fits = "each => { each.style.width = '180px'; return each.scrollWidth <= each.clientWidth; }"
    assert panel_of(lab).evaluate(fits)


def test_bars_are_seen_where_the_system_paints_in_its_own_colours(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 512)
    expect(row_of(lab, "train.ipynb")).to_contain_text("576 MiB")
    lab.emulate_media(forced_colors="active")
    colour = "each => getComputedStyle(each).backgroundColor"
    fill = panel_of(lab).locator(".jp-vgpu-Bar-fill").first
    assert fill.evaluate(colour) != fill.locator("..").evaluate(colour)
    assert fill.locator("..").evaluate("each => getComputedStyle(each).borderTopStyle") == "solid"
    shot(lab, "panel-forced-colours")


def test_notebook_7_has_it_too(student: Student, browser: Browser) -> None:
    student.start("train.ipynb", 768)
    student.start("old.ipynb", 1024)
    page = new_page(browser)
    try:
        student.log_in(page)
        page.goto(f"{student.demo.url}/user/alice/notebooks/train.ipynb")
        expect(page.locator(".jp-NotebookPanel")).to_be_visible()
        page.locator(".jp-Cell").first.click()
        palette = page.locator(".lm-CommandPalette-input")
        # a page that is still being put together hears no shortcut
        wait_until(
            lambda: page.keyboard.press("Control+Shift+C") or page.wait_for_timeout(500) or palette.is_visible(),
            30,
            "the palette opens",
        )
        palette.fill("show gpu slice")
        page.keyboard.press("Enter")
        expect(panel_of(page)).to_be_visible()
        expect(row_of(page, "train.ipynb")).to_contain_text("832 MiB")
        assert student.run("train.ipynb", "print(take(512))") == OUT_OF_MEMORY
        told = page.locator(".Toastify__toast").filter(has_text="train.ipynb asked for 512 MiB of GPU memory")
        expect(told).to_be_visible()
        shot(page, "notebook-7")
        told.get_by_role("button", name="Shut down old.ipynb").click()
        page.locator(".jp-Dialog").get_by_role("button", name="Shut down old.ipynb").click()
        wait_until(lambda: student.used() == 832, 10, "what the other held is free in the ledger")
        expect(row_of(page, "old.ipynb")).to_have_count(0)
        with page.context.expect_page() as opened:
            row_of(page, "train.ipynb").get_by_role("button", name="train.ipynb", exact=True).click()
        assert "/notebooks/train.ipynb" in opened.value.url
    finally:
        page.context.close()


def test_units_and_pace_are_the_users(student: Student, lab: Page) -> None:
    student.start("train.ipynb", 512)
    settings = {"raw": '{"units": "decimal", "seconds": 10, "statusBar": false}'}
    try:
        student.user.put("lab/api/settings/jupyter-vgpu:panel", settings)
        lab.reload()
        lab.get_by_role("tab", name="GPU slice").wait_for()
        expect(panel_of(lab)).to_contain_text("604 MB of 2.15 GB")
        expect(lab.get_by_role("button", name=re.compile("^GPU 604 MB"))).to_have_count(0)
        asked: list[str] = []
        lab.on("request", lambda request: asked.append(request.url) if "/vgpu/slice" in request.url else None)
        lab.wait_for_timeout(8000)
        assert len(asked) <= 1
    finally:
        student.user.put("lab/api/settings/jupyter-vgpu:panel", {"raw": "{}"})


def test_it_is_found_in_the_command_palette(lab: Page) -> None:
    lab.get_by_role("tab", name="GPU slice").click()  # closes it
    expect(panel_of(lab)).to_be_hidden()
    lab.keyboard.press("Control+Shift+C")
    lab.locator(".lm-CommandPalette-input").fill("show gpu slice")
    lab.keyboard.press("Enter")
    expect(panel_of(lab)).to_be_visible()


def test_what_the_hub_has_to_say_is_told_and_stays_in_the_panel(student: Student, lab: Page) -> None:
    toasts = lab.locator(".Toastify__toast")
    try:
        student.allow(hours=1000)
        hours = panel_of(lab).locator(".jp-vgpu-Hours")
        expect(hours).to_have_text(re.compile(r"^[\d.]+ of 1000 used, [\d.]+ left$"), timeout=20_000)
        student.allow(hours=0.001)  # more than that it has had already
        words = "Your GPU-hours are used up. This server goes on; the next one starts without a GPU."
        expect(toasts.filter(has_text=words)).to_have_count(1, timeout=20_000)
        expect(hours).to_have_attribute("data-state", "spent")
        student.maintenance("The GPU restarts at 18:00")
        expect(toasts.filter(has_text="Maintenance: The GPU restarts at 18:00")).to_have_count(1)
        expect(panel_of(lab).get_by_role("status")).to_have_text("Maintenance: The GPU restarts at 18:00")
        student.maintenance("")
        expect(toasts.filter(has_text="The maintenance is over.")).to_have_count(1)
        expect(panel_of(lab).get_by_role("status")).to_have_count(0)
    finally:
        student.maintenance("")
        student.allow()


def test_other_front_ends_read_the_same_with_the_servers_own_token(student: Student) -> None:
    code = """
import json, os, urllib.request
headers = {"Authorization": "token " + os.environ["JUPYTERHUB_API_TOKEN"]}
for path in ("vgpu/slice", "vgpu/openapi.json"):
    request = urllib.request.Request(os.environ["JUPYTERHUB_SERVICE_URL"] + path, headers=headers)
    answer = json.load(urllib.request.urlopen(request))
    print(answer.get("kind") or answer["servers"][0]["url"])
"""
    student.start("train.ipynb", 0)
    assert student.run("train.ipynb", code) == "slice\n/user/alice\n"


def test_it_speaks_simplified_chinese_and_nothing_else(student: Student, browser: Browser) -> None:
    student.set_language("zh_CN")
    page = new_page(browser)
    try:
        student.log_in(page)
        page.goto(f"{student.demo.url}/user/alice/lab?reset")
        page.get_by_role("tab", name="GPU 切片").click()
        student.start("train.ipynb", 512)
        assert student.run("train.ipynb", "print(take(3000))") == OUT_OF_MEMORY
        words = "train.ipynb 申请 2.93 GiB 显存，超过了您的整个切片。"
        expect(page.locator(".Toastify__toast").filter(has_text=words).first).to_be_visible()
        expect(page.get_by_role("button", name="GPU 576 MiB / 2 GiB，")).to_be_visible()
        expect(panel_of(page)).to_contain_text("尚未计算过")
        student.allow(hours=1000)
        student.maintenance("18:00")
        expect(panel_of(page)).to_contain_text(re.compile(r"已用 [\d.]+ / 1000，剩余"), timeout=20_000)
        labels = (
            panel_of(page)
            .locator("[aria-label], [title]")
            .evaluate_all("all => all.flatMap(each => [each.ariaLabel, each.title])")
        )
        text = panel_of(page).inner_text() + " ".join(filter(None, labels))
        names = r"\w+\.ipynb|python3?|Emulated vGPU device|GPU|[GM]iB|guard|PyTorch|torch\.cuda\.empty_cache|[AP]M"
        assert re.findall(r"[A-Za-z]{2,}", re.sub(names, "", text)) == []
        shot(page, "panel-zh")
    finally:
        student.maintenance("")
        student.allow()
        student.set_language("en")
        page.context.close()
