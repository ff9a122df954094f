"""One browser and one demo for all browser tests of a module."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from support.node import left_out

sys.path.insert(0, str(Path(__file__).parent))
from ui import ARGUMENTS, Demo, free_port, new_page


@pytest.fixture(autouse=True)
def jp_asyncio_loop() -> None:
    """None of pytest-jupyter's event loop here: Playwright runs its own."""


@pytest.fixture(autouse=True)
def jp_server_cleanup() -> None:
    """Nor its server."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        left_out("there is no Chromium here")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    made = Demo(free_port(), emulate=True, memory="8G")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    made = new_page(browser)
    yield made
    made.context.close()
