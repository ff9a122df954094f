"""The slice page, as Python sees it. The layout comes from the guard: there is no second copy of it."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..native import layout

_FORMATS = {4: "=I", 8: "=Q"}


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process of the tenant: its number as the node and as its container see it, and bytes of GPU memory.

    active_ns: when it last handed in work, in nanoseconds since 1970; 0: never.
    """

    pid: int
    pid_inside: int
    memory: int
    channels: int
    active_ns: int = 0


@dataclass(frozen=True, slots=True)
class PageState:
    """A consistent copy. Bytes and nanoseconds; `refused_*` tell of the last refused allocation, `sampled_at_ns` when a
    daemon looked last."""

    tier: str
    memory_quota: int
    memory_used: int
    memory_managed: int
    memory_peak: int
    core_percent: float
    on_ns: int
    channels_on: bool
    refusals: int
    refused_bytes: int
    refused_free: int
    refused_at_ns: int
    refused_pid: int
    sampled_at_ns: int
    processes: tuple[ProcessRow, ...]


class SlicePage:
    """A tenant's page. The guard is its writer; in the shim tier, where no guard counts, the daemon is."""

    def __init__(self, path: Path, gpu_uuid: str) -> None:
        self._layout = layout()
        self.path = path
        # made whole under another name first: the shim may map the page as soon as it has its name
        if not path.exists() or path.stat().st_size != self._layout["size"]:
            draft = path.with_suffix(".new")
            draft.unlink(missing_ok=True)
            fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            os.ftruncate(fd, self._layout["size"])
            os.fchmod(fd, 0o644)
            os.close(fd)
            draft.rename(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._map = mmap.mmap(self.fd, self._layout["size"])
        at = self._layout["gpu_uuid_offset"]
        text = gpu_uuid.encode()[: self._layout["gpu_uuid_length"] - 1]
        self._map[at : at + self._layout["gpu_uuid_length"]] = text.ljust(self._layout["gpu_uuid_length"], b"\0")

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)

    def _get(self, name: str, base: int = 0, fields: str = "page") -> int:
        offset, size = self._layout[fields][name]
        value: int = struct.unpack_from(_FORMATS[size], self._map, base + offset)[0]
        return value

    def _set(self, name: str, value: int, base: int = 0, fields: str = "page") -> None:
        offset, size = self._layout[fields][name]
        struct.pack_into(_FORMATS[size], self._map, base + offset, value)

    @property
    def refusals(self) -> int:
        """How many there were so far."""
        return self._get("refusals")

    def read(self) -> PageState:
        """Retries while the guard writes; a guard killed in mid-write leaves the last values."""
        for _ in range(100):
            before = self._get("sequence")
            state = self._copy()
            if before % 2 == 0 and before == self._get("sequence"):
                break
        return state

    def _copy(self) -> PageState:
        tiers = {number: name for name, number in self._layout["tiers"].items()}
        rows = []
        for i in range(min(self._get("process_rows"), self._layout["processes_max"])):
            base = self._row(i)
            if pid := self._get("pid", base, "process"):
                rows.append(
                    ProcessRow(
                        pid,
                        self._get("pid_inside", base, "process"),
                        self._get("memory", base, "process"),
                        self._get("channels", base, "process"),
                        self._get("active_ns", base, "process"),
                    )
                )
        return PageState(
            tier=tiers.get(self._get("tier"), "none"),
            memory_quota=self._get("memory_quota"),
            memory_used=self._get("memory_used"),
            memory_managed=self._get("memory_managed"),
            memory_peak=self._get("memory_peak"),
            core_percent=self._get("core_millipercent") / 1000,
            on_ns=self._get("on_ns"),
            channels_on=bool(self._get("channels_on")),
            refusals=self._get("refusals"),
            refused_bytes=self._get("refused_bytes"),
            refused_free=self._get("refused_free"),
            refused_at_ns=self._get("refused_at_ns"),
            refused_pid=self._get("refused_pid"),
            sampled_at_ns=self._get("sampled_at_ns"),
            processes=tuple(rows),
        )

    def _row(self, i: int) -> int:
        base: int = self._layout["processes_offset"] + i * self._layout["process_size"]
        return base

    def write_busy(self, busy: Mapping[int, int], at_ns: int) -> None:
        """Publish percent of the GPU's compute by process, as sampled: what NVML says in the slice comes from here."""
        for i in range(min(self._get("process_rows"), self._layout["processes_max"])):
            pid = self._get("pid", self._row(i), "process")
            self._set("busy_percent", busy.get(pid, 0), self._row(i), "process")
        self._set("sampled_at_ns", at_ns)

    def write_shim(
        self,
        rows: Sequence[ProcessRow],
        core_millipercent: int,
        managed: int,
        free: int,
    ) -> None:
        """Tier `shim`: publish bytes by process, and what share may be used now."""
        used = sum(row.memory for row in rows)
        rows = rows[: self._layout["processes_max"]]
        busy = {
            self._get("pid", self._row(i), "process"): self._get("busy_percent", self._row(i), "process")
            for i in range(min(self._get("process_rows"), self._layout["processes_max"]))
        }
        self._set("sequence", self._get("sequence") | 1)
        self._set("tier", self._layout["tiers"]["shim"])
        self._set("memory_used", used)
        self._set("core_now", core_millipercent)
        self._set("memory_managed", managed)
        self._set("memory_free", free)
        self._set("memory_peak", max(used, self._get("memory_peak")))
        for i in range(max(len(rows), self._get("process_rows"))):
            row = rows[i] if i < len(rows) else ProcessRow(0, 0, 0, 0)
            self._set("pid", row.pid, self._row(i), "process")
            self._set("pid_inside", row.pid_inside, self._row(i), "process")
            self._set("memory", row.memory, self._row(i), "process")
            self._set("active_ns", row.active_ns, self._row(i), "process")
            self._set("busy_percent", busy.get(row.pid, 0), self._row(i), "process")
        self._set("process_rows", len(rows))
        self._set("sequence", self._get("sequence") + 1)

    def write_refusal(self, pid: int, asked: int, free: int, at_ns: int) -> None:
        """Tier `shim`: one more. Bytes; nanoseconds since 1970."""
        self._set("sequence", self._get("sequence") | 1)
        self._set("refusals", self._get("refusals") + 1)
        self._set("refused_pid", pid)
        self._set("refused_bytes", asked)
        self._set("refused_free", free)
        self._set("refused_at_ns", at_ns)
        self._set("sequence", self._get("sequence") + 1)
