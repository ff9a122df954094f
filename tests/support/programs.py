"""Programs of the tests: in C, built with the machine's own compiler, and in Python without bindings."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

# How one in Python begins: `driver`, with a context; `address` for what it allocates.
CONTEXT = """
import ctypes
driver = ctypes.CDLL("libcuda.so.1")
context, address = ctypes.c_void_p(), ctypes.c_uint64()
assert not driver.cuInit(0) and not driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
assert not driver.cuCtxSetCurrent(context)
"""


def build(target: Path, source: Path, *options: str) -> Path:
    """May include the shim's tables of symbols."""
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "shim" / "hook"), "-o", str(target)]
    subprocess.run([*command, str(source), *options, "-ldl"], check=True)
    return target
