"""What the browser tests share: the demo, a Chromium, and how a user logs in."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page

from jupyter_vgpu.client import Client

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "demo"))
from hubclient import HubUser  # noqa: E402

from demo import PASSWORD, free_port  # noqa: E402
from demo import Demo as _Demo  # noqa: E402

__all__ = [
    "ARGUMENTS",
    "PASSWORD",
    "ROOT",
    "Demo",
    "Film",
    "HubUser",
    "free_port",
    "log_in",
    "new_page",
    "shot",
    "violations",
]

AXE = ROOT / ".tools" / "node_modules" / "axe-core" / "axe.min.js"
OUTPUT = ROOT / "tests" / "output"
# a closed network: the browser is not to look for its maker's servers
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Demo(_Demo):
    """The demo, with what a test asks of it."""

    def daemon(self) -> Client:
        return Client(self.root / "run" / "vgpud.sock")


def new_page(browser: Browser, **options: Any) -> Page:
    """A page in a context of its own, without anybody's cookies."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "color_scheme": "light", **options})
    context.set_default_timeout(30_000)
    return context.new_page()


def shot(page: Page, name: str) -> None:
    OUTPUT.mkdir(exist_ok=True)
    page.screenshot(path=OUTPUT / f"{name}.png")


def log_in(page: Page, demo: Demo, user: str) -> None:
    page.goto(demo.url)
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/hub/login" not in url)  # to the spawn page, or a server that runs already


class Film:
    """An animated picture, of shots that stand for a while each."""

    def __init__(self) -> None:
        self._shots: list[Image.Image] = []
        self._milliseconds: list[int] = []

    def take(self, page: Page, seconds: float) -> None:
        with Image.open(io.BytesIO(page.screenshot())) as image:
            # a palette of its own each, for toasts and themes have other colours
            self._shots.append(image.convert("RGB").quantize(64, dither=Image.Dither.NONE))
        self._milliseconds.append(round(1000 * seconds))

    def save(self, name: str) -> None:
        OUTPUT.mkdir(exist_ok=True)
        first, *others = self._shots
        first.save(OUTPUT / f"{name}.gif", save_all=True, append_images=others, duration=self._milliseconds, loop=0)


def violations(page: Page, within: str = "html") -> list[Any]:
    """What axe finds fault with."""
    page.evaluate(AXE.read_text())
    found: dict[str, Any] = page.evaluate("within => axe.run(within)", within)
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
