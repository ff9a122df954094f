"""`%load_ext jupyter_vgpu`: what the slice does, beside the code that makes it do it."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class

from .client import DaemonError
from .inside import NoSlice, Usage, launches, usage
from .quotas import format_bytes, format_percent

SAMPLE_S = 0.1
OUT_OF_MEMORY = ("out of memory", "out_of_memory", "outofmemory")


class Peak(threading.Thread):
    """Looks ten times a second how much memory is in use, while a cell runs."""

    def __init__(self, before: Usage) -> None:
        super().__init__(daemon=True)
        self.last, self.most = before, before.memory
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        try:
            self.last = usage()
        except DaemonError:  # it is asked again
            return
        self.most = max(self.most, self.last.memory)

    def finish(self) -> None:
        self._done.set()
        self.join()
        before = self.last.peak
        self._look()
        if self.last.peak > before:  # between two looks it was higher than ever before
            self.most = max(self.most, self.last.peak)


@magics_class
class VGPUMagics(Magics):
    """`%vgpu` and `%%vgpu`."""

    @line_magic("vgpu")
    def show(self, line: str) -> Usage | None:
        """Show this slice of a GPU: its quota, what it uses, and which process holds what."""
        if line.strip():
            print(f"%vgpu takes nothing ({line.strip()!r}); %%vgpu measures a cell", file=sys.stderr)
            return None
        try:
            return usage()
        except (NoSlice, DaemonError) as error:
            print(f"%vgpu: {error}", file=sys.stderr)
            return None

    @cell_magic("vgpu")
    def measure(self, line: str, cell: str) -> None:
        """Run the cell, then say how much GPU memory the slice had in use at most, how long it had the GPU, and how
        many kernels and graphs this notebook launched."""
        shell: InteractiveShell = self.shell
        try:
            before = usage()
        except (NoSlice, DaemonError) as error:
            print(f"%%vgpu: {error}; the cell runs all the same", file=sys.stderr)
            _finish(shell.run_cell(cell))
            return
        peak = Peak(before)
        peak.start()
        began, launched = time.monotonic(), launches()
        try:
            result = shell.run_cell(cell)
        finally:
            peak.finish()
            seconds, after = time.monotonic() - began, launches()
            count = None if launched is None or after is None else after - launched
            print(summary(before, peak.last, peak.most, seconds, count))
        _finish(result)


class CellFailed(Exception):
    """The measured cell did not end well; its own traceback stands above."""

    def _render_traceback_(self) -> list[str]:
        return []


def _finish(result: ExecutionResult) -> None:
    """A cell that failed or was interrupted fails here too, so that those after it are not run."""
    if not result.success:
        raise CellFailed from result.error_in_exec or result.error_before_exec


def summary(before: Usage, after: Usage, most: int, seconds: float, launched: int | None) -> str:
    """What a cell did, in a line. launched: None where nobody counts."""
    on_gpu = after.on_gpu_s - before.on_gpu_s
    return (
        f"{seconds:.1f} s; memory at most {format_bytes(most)} of {format_bytes(after.quota.memory)} "
        f"({format_bytes(after.memory)} now, {format_bytes(before.memory)} before); the GPU for {on_gpu:.1f} s "
        f"({format_percent(round(100 * on_gpu / seconds, 1) if seconds else 0)} of the time)"
        + ("" if launched is None else f"; {launched} launch{'' if launched == 1 else 'es'}")
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU, as the libraries say it: by the error's name, or by its text where that speaks of CUDA."""
    name, text = type(error).__name__.lower(), str(error).lower()
    if isinstance(error, MemoryError) and "cuda" not in type(error).__module__ + text:
        return False
    return any(word in name for word in OUT_OF_MEMORY) or (
        any(word in text for word in OUT_OF_MEMORY) and any(word in text + name for word in ("cuda", "gpu", "device"))
    )


def note(result: ExecutionResult) -> None:
    """Below the traceback of an error that came of too little GPU memory: who holds it."""
    error: Any = result.error_in_exec
    if error is None or not is_out_of_memory(error):
        return
    try:
        now = usage()
    except (NoSlice, DaemonError):
        return
    others = now.memory - now.mine
    print(
        f"GPU slice: {format_bytes(now.free)} of {format_bytes(now.quota.memory)} is free. This kernel holds "
        f"{format_bytes(now.mine)}, others of yours {format_bytes(others)}: the panel 'GPU slice' shows which, and "
        "ends them.",
        file=sys.stderr,
    )


def load(shell: InteractiveShell) -> None:
    """What `%load_ext jupyter_vgpu` does."""
    shell.register_magics(VGPUMagics)
    shell.events.register("post_run_cell", note)


def unload(shell: InteractiveShell) -> None:
    """What `%unload_ext jupyter_vgpu` does; IPython itself forgets no magics."""
    shell.events.unregister("post_run_cell", note)
