"""A tenant's account in tier `shim`, as Python sees it. The layout comes from the guard.

Every word in it is the tenant's to write: what is read here is what its processes say, never who they are.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..native import layout

_FORMATS = {4: "=I", 8: "=Q"}
# in place of the number of a process without the shim: if it finds the shim, that does not take the row for its own
OUTSIDE = 0xFFFFFFFF
_MOST = 1 << 48  # bytes; more than that is a lie


def account_file(directory: Path) -> Path:
    """Where a tenant's account is, once it has one."""
    return directory / str(layout()["account_file"])


@dataclass(frozen=True, slots=True)
class Said:
    """What stands in a row. Bytes of device and of managed memory; when it was last at work.

    busy_at: nanoseconds of CLOCK_MONOTONIC; 0: never.
    """

    device: int
    managed: int
    busy_at: int


class Account:
    """The file, which outlives the daemon as the processes that are in it do.

    It is read and written, not mapped: a tenant may cut it short, and who maps such a file dies of it.
    """

    def __init__(self, directory: Path) -> None:
        self._layout = layout()
        self._path = account_file(directory)
        self.places: int = self._layout["account_rows"]
        # nobody else opens it by its name: the shim is given a descriptor
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._end = 0
        self._content()
        self._set("magic", self._layout["account_magic"])
        self._set("version", self._layout["account_version"])

    def close(self) -> None:
        os.close(self._fd)

    def open_for_tenant(self) -> int:
        """A descriptor to give away: of an open file of its own, for flags are the open file's."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)

    def _content(self) -> bytes:
        size: int = self._layout["account_size"]
        if os.fstat(self._fd).st_size != size:  # new, or cut, or made to fill the disk
            os.ftruncate(self._fd, size)
        return os.pread(self._fd, size, 0).ljust(size, b"\0")

    def _set(self, name: str, value: int) -> None:
        offset, size = self._layout["account"][name]
        os.pwrite(self._fd, struct.pack(_FORMATS[size], value), offset)

    def _base(self, place: int) -> int:
        base: int = self._layout["account_rows_offset"] + place * self._layout["account_row_size"]
        return base

    def read(self, places: Iterable[int]) -> dict[int, Said]:
        """What the rows at these places say."""
        content = self._content()
        fields = self._layout["account_row"]

        def get(base: int, name: str) -> int:
            offset, size = fields[name]
            value: int = struct.unpack_from(_FORMATS[size], content, base + offset)[0]
            return value

        return {
            place: Said(min(get(base, "device"), _MOST), min(get(base, "managed"), _MOST), get(base, "busy_at"))
            for place, base in ((place, self._base(place)) for place in places)
        }

    @property
    def used_ns(self) -> int:
        """Time on the GPU that the tenant's processes have measured, of all that there ever were."""
        said = os.pread(self._fd, 8, self._layout["account_used_offset"]).ljust(8, b"\0")
        return int.from_bytes(said, sys.byteorder)

    def write(self, place: int, pid: int, device: int = 0) -> None:
        """Whose row it is from now on, and what it holds; pid 0: nobody's."""
        row = bytearray(self._layout["account_row_size"])
        for name, value in (("pid", pid), ("device", device)):
            offset, size = self._layout["account_row"][name]
            struct.pack_into(_FORMATS[size], row, offset, value)
        os.pwrite(self._fd, row, self._base(place))
        if pid:
            self.reach(place)

    def reach(self, place: int) -> None:
        """Rows as far as this one are added up by the tenant's processes, at each allocation."""
        self._end = max(self._end, place + 1)
        self._set("rows_end", self._end)
