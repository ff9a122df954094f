"""`make smoke`: the demo's path without a person. Each step says what was seen; the last line says all."""

from __future__ import annotations

import re
import time
from pathlib import Path

from hubclient import HubUser

from jupyter_vgpu.client import Client

SLICE = "1GiB-25"


def _step(text: str) -> None:
    print(f"  ✓ {text}", flush=True)


def _check(condition: object, text: str) -> None:
    if not condition:
        raise AssertionError(text)
    _step(text)


def walk(url: str, run_dir: Path, password: str) -> int:
    """Do it all; returns the exit code."""
    began = time.monotonic()
    daemon = Client(run_dir / "vgpud.sock")
    _step("hub up")
    alice = HubUser(url, "alice", password)
    alice.login()
    _step("login through the hub's own pages")
    _check(f'value="{SLICE}"' in alice.spawn_page(), f"slice {SLICE} offered and chosen")
    alice.spawn(SLICE)
    _step("server up")
    _, outputs = alice.run_notebook("quickstart.ipynb")
    said = "".join(outputs)
    _step("notebook executed")
    _check("the kernel's result is right" in said, "kernel result right")
    _check("CUDA_ERROR_OUT_OF_MEMORY" in said, "allocation beyond the quota refused with a CUDA out-of-memory")
    held = re.search(r"this notebook holds (\d+) bytes", said)
    view = alice.get("vgpu/slice")
    rows = view["holders"]
    same = (
        held and int(held[1]) == view["usage"]["memory"] == rows[0]["memory"] and rows[0]["path"] == "quickstart.ipynb"
    )
    _check(
        same,
        f"usage in the REST answer equals what the notebook holds ({view['usage']['memory']} bytes)",
    )
    alice.stop()
    _step("server stopped")
    tenants = daemon.request("GET", "/api/tenants")["tenants"]
    reserved = sum(gpu["memory"]["reserved"] for gpu in daemon.request("GET", "/api/gpus")["gpus"])
    _check(tenants == [] and reserved == 0, "ledger empty")
    print(
        "smoke passed: hub up, login, slice chosen, server up, notebook executed, kernel result right, out-of-memory "
        f"refused, usage equal, server stopped, ledger empty ({time.monotonic() - began:.0f} s, tier {view['tier']})"
    )
    return 0
