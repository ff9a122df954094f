"""Where the node daemon's sockets and state are, for every part that looks for them."""

from __future__ import annotations

import os
from pathlib import Path

ADMIN_SOCKET = "vgpud.sock"
TENANT_SOCKET = "vgpu.sock"
ENV_RUN_DIR = "VGPU_RUN_DIR"
ENV_SLICE_DIR = "VGPU_SLICE_DIR"
ENV_BOARD_DIR = "VGPU_BOARD_DIR"
"""Where the notice board of a server without a slice is."""
ENV_NO_QUOTA = "VGPU_NO_QUOTA"
"""Set where a server has no slice and its user had none to choose."""
ENV_QUEUE_URL = "VGPU_QUEUE_URL"
"""The queue's page, where the hub has one; without the host."""


def default_run_dir() -> Path:
    """Sockets and shared state; `VGPU_RUN_DIR` overrides it."""
    if given := os.environ.get(ENV_RUN_DIR):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/vgpu")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "vgpu" if runtime else Path(f"/tmp/vgpu-{os.geteuid()}")  # noqa: S108


def default_data_dir() -> Path:
    """What outlives a reboot: the tenants' database."""
    if os.geteuid() == 0:
        return Path("/var/lib/vgpu")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "vgpu"
