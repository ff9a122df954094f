"""A tenant's account in tier `shim`, as Python sees it. The layout comes from the guard."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ..native import layout

_FORMATS = {4: "=I", 8: "=Q"}


class AccountFull(RuntimeError):
    """Every row has its process."""


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One process: its number on the node; bytes of device and of managed memory; when it was last at work.

    busy_at: nanoseconds of CLOCK_MONOTONIC; 0: never.
    """

    place: int
    pid: int
    device: int
    managed: int
    busy_at: int


def account_file(directory: Path) -> Path:
    """Where a tenant's account is, once it has one."""
    return directory / str(layout()["account_file"])


class Account:
    """The file, which outlives the daemon as the processes that are in it do. Its descriptor, `fd`, is for them.

    It is read and written, not mapped: a tenant may cut it short, and who maps such a file dies of it.
    """

    def __init__(self, directory: Path) -> None:
        self._layout = layout()
        # nobody opens it by its name: the shim is given the descriptor
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(account_file(directory), flags, 0o600)
        self._content()
        self._set("magic", self._layout["account_magic"])
        self._set("version", self._layout["account_version"])

    def close(self) -> None:
        os.close(self.fd)

    def _content(self) -> bytes:
        size: int = self._layout["account_size"]
        content = os.pread(self.fd, size, 0)
        if len(content) < size:  # new, or cut short: NVML will tell what is missing in it
            os.ftruncate(self.fd, size)
            content = content.ljust(size, b"\0")
        return content

    def _get(self, content: bytes, name: str, base: int = 0, fields: str = "account") -> int:
        offset, size = self._layout[fields][name]
        value: int = struct.unpack_from(_FORMATS[size], content, base + offset)[0]
        return value

    def _set(self, name: str, value: int, base: int = 0, fields: str = "account") -> None:
        offset, size = self._layout[fields][name]
        os.pwrite(self.fd, struct.pack(_FORMATS[size], value), base + offset)

    def _base(self, place: int) -> int:
        base: int = self._layout["account_rows_offset"] + place * self._layout["account_row_size"]
        return base

    def _rows(self) -> list[AccountRow]:
        content = self._content()
        end = min(self._get(content, "rows_end"), self._layout["account_rows"])
        names = "pid", "device", "managed", "busy_at"
        return [
            AccountRow(place, *(self._get(content, name, self._base(place), "account_row") for name in names))
            for place in range(end)
        ]

    def rows(self) -> list[AccountRow]:
        """Of those who have one."""
        return [row for row in self._rows() if row.pid]

    def give(self, pid: int) -> int:
        """The place of the process' row, or of a free one; what stands there is the process' to write.

        Raises AccountFull.
        """
        rows, most = self._rows(), self._layout["account_rows"]
        places = {row.pid: row.place for row in reversed(rows)}
        place = places.get(pid, places.get(0, len(rows)))
        if place >= most:
            raise AccountFull(f"this slice has {most} processes that use the GPU, the most that it may")
        if pid not in places:
            self.write(AccountRow(place, pid, 0, 0, 0))
        if place == len(rows):
            self._set("rows_end", place + 1)
        return place

    def write(self, row: AccountRow) -> None:
        """For a process that does not write its own."""
        for name in ("pid", "device", "managed", "busy_at"):
            self._set(name, getattr(row, name), self._base(row.place), "account_row")

    def take(self, place: int) -> None:
        """The process is gone, and what it held."""
        self.write(AccountRow(place, 0, 0, 0, 0))
