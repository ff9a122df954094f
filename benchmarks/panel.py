"""What the panel costs and how soon it tells: a real server with 20 kernels, a real browser. Writes cpu.json.

--peer DIRECTORY: where jupyter-resource-usage and jupyterlab-nvdashboard are installed, to measure them beside ours in
the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from playwright.sync_api import Page, expect, sync_playwright
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "ui")]

from results import Machine, Row, show, write  # noqa: E402
from student import Student, open_lab, panel_of  # noqa: E402
from support.jupyter import JupyterServer  # noqa: E402
from support.node import Node  # noqa: E402
from ui import ARGUMENTS, Demo, free_port  # noqa: E402

KERNELS, ASKED, ROUNDS = 20, 100, 5
WATCHED_S, TRIES = 30, 8
STREAMED_S = 10
DASHBOARD = ("nvdashboard/gpu_utilization", "nvdashboard/gpu_usage")  # what its charts of memory and compute listen to


class Server(JupyterServer):
    """With kernels, and with the peers' extensions beside ours."""

    def __init__(self, node: Node, peer: Path | None) -> None:
        extensions = ("jupyter_resource_usage", "jupyterlab_nvdashboard") if peer else ()
        super().__init__(node, node.tenant("4G", 50), extensions=extensions, path=(str(peer or ""),))
        for number in range(KERNELS):
            self.open_notebook(f"{number}.ipynb")
        time.sleep(20)  # kernels that start need the processor

    def _processor_s(self) -> float:
        """That the server has used so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def cost(self, path: str) -> tuple[float, int]:
        """Milliseconds of the server's processor for an answer, and its bytes."""
        size = 0
        began, before = time.monotonic(), self._processor_s()
        for _ in range(ASKED):
            size = len(self.get(path).content)
        took, after = time.monotonic() - began, self._processor_s()
        time.sleep(took)  # as long again, with nothing asked
        idle = self._processor_s() - after
        return 1e3 * (after - before - idle) / ASKED, size

    def cost_of_streams(self, paths: Sequence[str]) -> tuple[float, float]:
        """Percent of the processor while they push, beyond as long without; and bytes a second."""
        before = self._processor_s()
        size = asyncio.run(self._listen(paths))
        after = self._processor_s()
        time.sleep(STREAMED_S)
        idle = self._processor_s() - after
        return 100 * (after - before - idle) / STREAMED_S, size / STREAMED_S

    async def _listen(self, paths: Sequence[str]) -> int:
        sizes = []
        headers = dict(self.session.headers)
        url = self.url.replace("http", "ws", 1)
        streams = [await websocket_connect(HTTPRequest(f"{url}/{path}", headers=headers)) for path in paths]
        for stream in streams:

            async def drain(stream: WebSocketClientConnection = stream) -> None:
                while (message := await stream.read_message()) is not None:
                    sizes.append(len(message))

            _ = asyncio.create_task(drain())  # noqa: RUF006 (it ends with the connection)
        await asyncio.sleep(STREAMED_S)
        for stream in streams:
            stream.close()
        assert len(sizes) > STREAMED_S * len(paths) / 2, "they pushed nothing"
        return sum(sizes)


def server_rows(peer: Path | None) -> list[Row]:
    node = Node("--emulate", "--emulated-memory=8G")
    server = Server(node, peer)
    try:
        ours, theirs, pushed, size = [], [], [], 0
        for _ in range(ROUNDS):
            cost, size = server.cost("vgpu/slice")
            ours.append(cost)
            if peer:
                theirs.append(server.cost("api/metrics/v1")[0])
                pushed.append(server.cost_of_streams(DASHBOARD))
    finally:
        server.stop()
        node.stop()
    beside = ""
    if peer:
        dashboard = [statistics.median(values) for values in zip(*pushed, strict=True)]
        beside = (
            f"; jupyter-resource-usage: {statistics.median(theirs) / 10:.2f} %; jupyterlab-nvdashboard, which tells of "
            f"the GPU and of no notebook: {dashboard[0]:.2f} % and {dashboard[1]:.0f} bytes"
        )
    detail = f"of a core at 1 Hz with {KERNELS} kernels: the median of {ROUNDS} x {ASKED} answers{beside}"
    return [
        Row("panel.server_cpu_percent", statistics.median(ours) / 10, "percent", "lower", detail),
        Row("panel.bytes_per_update", float(size), "bytes", "lower", f"{KERNELS} kernels, none of which uses the GPU"),
    ]


def main_thread_seconds(page: Page, seconds: float) -> float:
    """Busy seconds of the page's main thread, by the browser's own account."""
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable")

    def busy() -> float:
        metrics = client.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

    before = busy()
    page.wait_for_timeout(1e3 * seconds)
    return busy() - before


def browser_rows() -> list[Row]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    demo = Demo(free_port(), emulate=True, memory="8G")
    try:
        demo.start()
        student = Student(demo)
        for number in range(KERNELS):
            student.start(f"{number}.ipynb", 0)
        student.start("train.ipynb", 512)
        with sync_playwright() as playwright:
            page = open_lab(playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS), student)
            page.wait_for_timeout(10_000)
            pairs = []
            for _ in range(3):
                shown = main_thread_seconds(page, WATCHED_S)
                page.get_by_role("tab", name="GPU slice").click()
                hidden = main_thread_seconds(page, WATCHED_S)
                page.get_by_role("tab", name="GPU slice").click()
                pairs.append((100 * shown / WATCHED_S, 100 * hidden / WATCHED_S))
            seen = [
                resize_seen(page, 3 + number % 2, lambda memory: student.daemon("PATCH", {"memory": memory}))
                for number in range(TRIES)
            ]
            followed = [
                resize_seen(page, 1 + number % 2, lambda memory: student.allow(memory=memory))
                for number in range(TRIES)
            ]
            told = [refusal_told(student, page, 10 + number) for number in range(TRIES)]
    finally:
        demo.stop()
    more = [shown - hidden for shown, hidden in pairs]
    return [
        Row(
            "panel.browser_cpu_percent",
            statistics.median(more),
            "percent",
            "lower",
            f"of a core, of the page's main thread, with the panel open at 1 Hz and {KERNELS + 1} rows, beyond the "
            f"same page with it closed ({statistics.median(hidden for _, hidden in pairs):.1f}): {len(pairs)} pairs",
        ),
        Row("panel.resize_seen_s", statistics.median(seen), "s", "lower", f"worst of {TRIES}: {max(seen):.1f}"),
        Row(
            "panel.admin_resize_seen_s",
            statistics.median(followed),
            "s",
            "lower",
            f"from the admin's call of the hub service's API to the number in the panel; worst of {TRIES}: "
            f"{max(followed):.1f}",
        ),
        Row(
            "panel.oom_seen_s",
            statistics.median(told),
            "s",
            "lower",
            f"from the refused call to the notification, with the way from and to the kernel; worst of {TRIES}: "
            f"{max(told):.1f}",
        ),
    ]


def resize_seen(page: Page, gib: int, resize: Callable[[str], object]) -> float:
    began = time.monotonic()
    resize(f"{gib}G")
    expect(panel_of(page)).to_contain_text(f"of {gib} GiB")
    return time.monotonic() - began


def refusal_told(student: Student, page: Page, gib: int) -> float:
    """Of one who is refused again the notification is kept up to date: it is waited for by what it says."""
    began = time.monotonic()
    student.run("train.ipynb", f"take({gib * 1024})")
    expect(page.locator(".Toastify__toast").filter(has_text=f"train.ipynb asked for {gib} GiB")).to_be_visible()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path)
    options = parser.parse_args()
    rows = server_rows(options.peer) + browser_rows()
    show(rows)
    write("cpu", Machine(f"emulated GPU, {os.cpu_count()} cores, Linux {platform.release()}", "emulated"), rows)


if __name__ == "__main__":
    main()
