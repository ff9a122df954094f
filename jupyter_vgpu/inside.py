"""The slice that this program runs in: what it may use, and what it uses. Needs nothing but the package itself."""

from __future__ import annotations

import ctypes
import html
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .client import Client, Json
from .paths import ENV_SLICE_DIR, TENANT_SOCKET
from .quotas import Quota, format_bytes, format_percent


class NoSlice(RuntimeError):
    """This program does not run in a slice of a GPU."""

    def __init__(self) -> None:
        super().__init__(
            "this program does not run in a slice of a GPU: choose one when you start your server, or use "
            "'jupyter vgpu run'"
        )


def slice_client(timeout: float = 10) -> Client:
    """To vgpud, which knows by the socket who asks. timeout: seconds. Raises NoSlice."""
    directory = os.environ.get(ENV_SLICE_DIR)
    if not directory:
        raise NoSlice
    return Client(Path(directory) / TENANT_SOCKET, timeout)


@dataclass(frozen=True, slots=True)
class Process:
    """One that uses the GPU in this slice; pid as seen in it. memory: bytes. cores: percent."""

    pid: int
    name: str
    memory: int
    cores: int


@dataclass(frozen=True)
class Usage:
    """What a slice uses now, beneath what it may. Bytes and percent; a notebook shows it as a table.

    peak: the most memory since the slice was made. on_gpu_s: seconds that its work had the GPU in all.
    """

    gpu: str
    quota: Quota
    memory: int
    peak: int
    cores: int
    on_gpu_s: float
    tier: str
    processes: tuple[Process, ...]

    @classmethod
    def of(cls, view: Mapping[str, Any]) -> Usage:
        """Of what vgpud says of a tenant."""
        processes = (
            Process(each["pid_in_slice"], each["name"], each["memory"], each["cores"]) for each in view["processes"]
        )
        return cls(
            gpu=view["gpu"]["name"],
            quota=Quota.parse(**view["quota"]),
            memory=view["usage"]["memory"],
            peak=view["usage"]["memory_peak"],
            cores=view["usage"]["cores"],
            on_gpu_s=view["usage"]["on_gpu_ns"] / 1e9,
            tier=view["tier"],
            processes=tuple(processes),
        )

    @property
    def free(self) -> int:
        """Bytes that can still be allocated."""
        return max(0, self.quota.memory - self.memory)

    @property
    def mine(self) -> int:
        """Bytes of this very process."""
        return sum(process.memory for process in self.processes if process.pid == os.getpid())

    def __str__(self) -> str:
        return (
            f"{self.gpu}: {format_bytes(self.memory)} of {format_bytes(self.quota.memory)} of memory, "
            f"{format_percent(self.cores)} of {format_percent(self.quota.cores)} of compute"
        )

    def _repr_html_(self) -> str:
        def row(*cells: str, tag: str = "td") -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        rows = [row("process", "name", "memory", "compute", tag="th")]
        for process in self.processes:
            name = f"{process.name} (this one)" if process.pid == os.getpid() else process.name
            rows.append(row(str(process.pid), name, format_bytes(process.memory), format_percent(process.cores)))
        return f"<table><caption>{html.escape(str(self))}</caption>{''.join(rows)}</table>"


def launches() -> int | None:
    """Kernels and graphs that this very process has launched so far; None: nobody counts, for the shim is not in it."""
    try:
        count = ctypes.CDLL(None).vgpu_launches
    except AttributeError:
        return None
    count.restype = ctypes.c_uint64
    return int(count())


def quota() -> Quota:
    """What this slice may use. Raises NoSlice, or DaemonError where vgpud does not answer."""
    return usage().quota


def usage() -> Usage:
    """What this slice uses now, by process. Raises NoSlice, or DaemonError where vgpud does not answer."""
    view: Json = slice_client().request("GET", "/api/slice")
    return Usage.of(view)
