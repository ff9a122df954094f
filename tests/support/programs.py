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

# Sixty children, ten at once (a context takes 64 MiB), and then the parent: each takes argv[1] bytes of device memory and
# argv[2] of managed. Says "done", and waits for a line.
FORK_STORM = """
import ctypes, os, sys
driver = ctypes.CDLL("libcuda.so.1")
context, address = ctypes.c_void_p(), ctypes.c_uint64()
device, managed = map(int, sys.argv[1:])
def begin():
    assert not driver.cuInit(0) and not driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    assert not driver.cuCtxSetCurrent(context)
    assert not device or not driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(device))
    assert not managed or not driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(managed), 1)
for wave in range(6):
    children = []
    for _ in range(10):
        child = os.fork()
        if not child:
            begin()
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [0] * 10, statuses
begin()
print("done", flush=True)
sys.stdin.readline()
"""


def build(target: Path, source: Path, *options: str) -> Path:
    """May include the shim's tables of symbols."""
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "shim" / "hook"), "-o", str(target)]
    subprocess.run([*command, str(source), *options, "-ldl"], check=True)
    return target
