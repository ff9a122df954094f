"""The C parts that come with the package: where they are, and the layout that they share with Python."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any


class NativeMissing(RuntimeError):
    """The package was installed without its C parts."""


def native_dir() -> Path:
    """Folder with bin/, lib/ and emulator/. `VGPU_NATIVE_DIR` overrides it (a build under test)."""
    return Path(os.environ.get("VGPU_NATIVE_DIR") or Path(__file__).parent / "_native")


def program(name: str) -> Path:
    """Path of `vgpu-guard` or `vgpu-run`. Raises NativeMissing."""
    path = native_dir() / "bin" / name
    if not path.exists():
        raise NativeMissing(f"{path} is missing: build it with 'pip install -e .' (needs cmake and a C compiler)")
    return path


@functools.cache
def layout() -> dict[str, Any]:
    """Layout of the slice page and the names that launcher, shim and daemon share, as the guard was compiled."""
    result = subprocess.run([program("vgpu-guard"), "--layout"], check=True, capture_output=True, text=True, timeout=10)
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded
