"""A tenant in tier `shim`: its processes count by themselves in an account; NVML tells whether they do.

What can't be held here, since a program may go round the shim, is noticed: memory that nobody counted is charged to the
tenant, and above the quota its holders are ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..native import layout
from .account import Account, AccountFull, AccountRow, account_file
from .page import ProcessRow, SlicePage, pid_inside

log = logging.getLogger("vgpud.shim")

RETURN_SECONDS = 5
# what the driver has beside what it was asked for: 14 MiB a process on an H100
SLACK, SLACK_OF_PROCESS = 64 << 20, 32 << 20
OVER_SAMPLES = 2  # one may be taken while a process frees
_MAX_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the tenant may have now. memory: bytes; limit: with managed memory; cores: percent of the GPU's time."""

    memory: int
    limit: int
    cores: float


@dataclass(frozen=True, slots=True)
class _Entry:
    """A process that entered the slice; its start tells it from another that has its number later."""

    pid: int
    started: int
    cgroup: str


class ShimTier:
    """One tenant's. directory: the tenant's own; page: its slice page, of which the daemon is the writer here."""

    def __init__(self, directory: Path, page: SlicePage) -> None:
        self._directory = directory
        self._page = page
        self._account = Account(directory)
        self._pidfds: dict[int, int] = {}
        self._entries: dict[int, _Entry] = {}
        self._outside: dict[int, int] = {}  # processes without the shim, and their rows
        self._over = 0
        for row in self._account.rows():  # a predecessor's
            self._watch(row.pid, row.place)

    def close(self) -> None:
        for pid in list(self._pidfds):
            self._unwatch(pid)
        self._account.close()

    def remove(self) -> None:
        """The tenant is in tier `guard` now."""
        self.close()
        account_file(self._directory).unlink()

    @staticmethod
    def has_one(directory: Path) -> bool:
        """Was the tenant in this tier before the daemon was started?"""
        return account_file(directory).exists()

    # --- processes come and go ---

    def enter(self, pid: int) -> None:
        """A launcher is about to become a program in the slice."""
        if (started := _started(pid)) is None:
            return
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries = {entry.pid: entry for entry in self._entries.values() if _started(entry.pid)}
        self._entries[pid] = _Entry(pid, started, _cgroup(pid))

    def attach(self, pid: int) -> tuple[int, int]:
        """The process' place in the account, and the account's descriptor. Raises AccountFull, ProcessLookupError."""
        place = self._outside.pop(pid, None)
        if place is None:
            place = self._account.give(pid)
        self._watch(pid, place)
        return place, self._account.fd

    def detach(self, pid: int) -> None:
        """It closed its connection, or became another program; or its end is about to be told."""
        self._forget(pid)

    def _watch(self, pid: int, place: int) -> None:
        if pid in self._pidfds:
            return
        try:
            self._pidfds[pid] = os.pidfd_open(pid)
        except OSError:
            self._account.take(place)
            return
        asyncio.get_running_loop().add_reader(self._pidfds[pid], self._forget, pid)

    def _unwatch(self, pid: int) -> None:
        if pid in self._pidfds:
            asyncio.get_running_loop().remove_reader(self._pidfds[pid])
            os.close(self._pidfds.pop(pid))

    def _forget(self, pid: int) -> None:
        self._unwatch(pid)
        self._outside.pop(pid, None)
        for row in self._account.rows():
            if row.pid == pid:
                self._account.take(row.place)

    # --- numbers ---

    def publish(self, allowance: Allowance, refusal: tuple[int, int] | None = None) -> None:
        """Onto the page, for who asks the daemon. refusal: pid and the bytes that it asked for."""
        rows = self._account.rows()
        device, managed = sum(row.device for row in rows), sum(row.managed for row in rows)
        free = max(0, min(allowance.memory - device, allowance.limit - device - managed))
        now, clock = time.time_ns(), time.monotonic_ns()
        self._page.write_shim(
            [
                ProcessRow(
                    row.pid,
                    pid_inside(row.pid),
                    row.device + row.managed,
                    0,
                    now - (clock - row.busy_at) if 0 < row.busy_at <= clock else 0,
                )
                for row in rows
            ],
            round(1000 * allowance.cores),
            managed,
            free,
            (refusal[0], refusal[1], free, now) if refusal else None,
        )

    @property
    def outside(self) -> list[int]:
        """Processes of the tenant that use the GPU without the shim."""
        return list(self._outside)

    def witness(self, held: Mapping[int, int], quota: int) -> None:
        """Compare with NVML. held: bytes by process, of this GPU and of no other tenant's."""
        counted = {row.pid: row for row in self._account.rows()}
        for pid, size in held.items():
            if pid not in counted or pid in self._outside:
                self._charge(pid, size)
        for pid in [pid for pid in self._outside if pid not in held]:
            self._forget(pid)
        mine = {pid: size for pid, size in held.items() if pid in counted or pid in self._outside}
        over = sum(mine.values()) - quota - SLACK - SLACK_OF_PROCESS * len(mine)
        self._over = self._over + 1 if over > 0 else 0
        if self._over >= OVER_SAMPLES:
            self._over = 0
            self._end_holders(mine, {pid: row.device for pid, row in counted.items()}, over)

    def _charge(self, pid: int, size: int) -> None:
        if pid not in self._outside:
            if not self._belongs(pid):
                return
            try:
                self._outside[pid] = self._account.give(pid)
            except AccountFull as error:
                log.warning("process %d: %s", pid, error)
                return
            self._watch(pid, self._outside[pid])
            log.warning("process %d uses the GPU of its slice without the shim: %d bytes are charged", pid, size)
        self._account.write(AccountRow(self._outside[pid], pid, size, 0, 0))

    def _end_holders(self, mine: dict[int, int], counted: dict[int, int], over: int) -> None:
        """Who goes round the account, until the rest fits: those without the shim, then those who hold the most more
        than they say."""
        for pid in sorted(mine, key=lambda pid: (pid not in self._outside, counted.get(pid, 0) - mine[pid])):
            if over <= 0 or (pid not in self._outside and mine[pid] - counted.get(pid, 0) <= SLACK_OF_PROCESS):
                return
            try:
                signal.pidfd_send_signal(self._pidfds[pid], signal.SIGKILL)
                log.warning("ended process %d: it held %d bytes that its slice does not have", pid, mine[pid])
            except (OSError, KeyError) as error:
                log.error("process %d holds %d bytes above its quota and can't be ended: %r", pid, over, error)
            over -= mine[pid]

    def _belongs(self, pid: int) -> bool:
        """Is it of this tenant? By its environment, its ancestors, or its container."""
        with contextlib.suppress(OSError):
            if f"{layout()['env_dir']}={self._directory}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                return True
        cgroup = _cgroup(pid)
        if cgroup != _cgroup(os.getpid()) and any(cgroup == entry.cgroup for entry in self._entries.values()):
            return True
        for _ in range(64):
            entry = self._entries.get(pid)
            if entry and entry.started == _started(pid):
                return True
            if pid in self._pidfds and pid not in self._outside:
                return True
            if (parent := _parent(pid)) <= 1:
                return False
            pid = parent
        return False


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat behind the name, which may hold anything: state, parent, group, session, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _started(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _cgroup(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""
