"""A tenant in tier `shim`: its processes count by themselves in an account; the driver tells whether they do.

What can't be held here, since a program may go round the shim, is noticed: memory that nobody counted is charged to the
tenant, and above the quota its holders are ended. Who is who stands in the daemon's own list, for the account is the
tenant's to write.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import processes
from .account import OUTSIDE, Account, Said, account_file
from .page import ProcessRow, SlicePage

log = logging.getLogger("vgpud.shim")

RETURN_SECONDS = 5
# what the driver has beside what it was asked for: 14 MiB a process on an H100
SLACK, SLACK_OF_PROCESS = 64 << 20, 32 << 20
OVER_SAMPLES = 2  # one may be taken while a process frees
_MAX_ENTRIES = 1024
_MEMBERS_FILE = "members.json"


class AccountFull(RuntimeError):
    """Every row has its process."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the tenant may have now. memory: bytes; limit: with managed memory; cores: percent of the GPU's time."""

    memory: int
    limit: int
    cores: float


@dataclass(slots=True)
class Member:
    """A process of the tenant's with a row in the account.

    before: bytes that the driver had under its number when it came, a dead process' of that number. outside: it runs
    without the shim, and its row says `seen`, what the driver tells.
    """

    place: int
    pid: int
    started: int
    pidfd: int
    inside: int
    before: int = 0
    outside: bool = False
    seen: int = 0


class ShimTier:
    """One tenant's. directory: the tenant's own; page: its slice page, of which the daemon is the writer here.

    left_over(pid): bytes that the driver has under the number of a process that came a moment ago, of a dead one.
    """

    def __init__(self, directory: Path, page: SlicePage, left_over: Callable[[int], int]) -> None:
        self._directory = directory
        self._page = page
        self._left_over = left_over
        self._account = Account(directory)
        self._members: dict[int, Member] = {}
        self._entries: dict[int, int] = {}  # launchers by number, and when they were started
        self._over = 0
        self._quota = 0
        self._tolerated = 0  # what was held when the quota was made smaller: that kills nothing
        self._adopt()

    def close(self) -> None:
        for member in list(self._members.values()):
            self._unwatch(member)
        self._members.clear()
        self._account.close()

    def remove(self) -> None:
        """The tenant is in tier `guard` now."""
        self.close()
        account_file(self._directory).unlink(missing_ok=True)
        (self._directory / _MEMBERS_FILE).unlink(missing_ok=True)

    @staticmethod
    def has_one(directory: Path) -> bool:
        """Was the tenant in this tier before the daemon was started?"""
        return account_file(directory).exists()

    # --- processes come and go ---

    def enter(self, pid: int) -> None:
        """A launcher is about to become a program in the slice."""
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries = {pid: start for pid, start in self._entries.items() if processes.started(pid) == start}
        self._entries[pid] = processes.started(pid)

    def attach(self, pid: int) -> tuple[int, int]:
        """The process' place in the account, and a descriptor of it to give away and close.

        Raises AccountFull, and OSError when the process has ended.
        """
        member = self._members.get(pid)
        if member and member.started != processes.started(pid):
            self._forget(member)
            member = None
        if member is None:
            member = self._add(pid, before=self._left_over(pid))
        elif member.outside:  # it has found the shim
            member.outside = False
            self._account.write(member.place, pid)
        return member.place, self._account.open_for_tenant()

    def detach(self, pid: int) -> None:
        """It closed its connection, or became another program, or has ended."""
        if member := self._members.get(pid):
            self._forget(member)

    def end_all(self) -> None:
        """The slice is removed: what its processes hold would be nobody's."""
        for member in self._members.values():
            self._end(member)

    @property
    def used_ns(self) -> int:
        """Time on the GPU, as its processes say; only where they are paced is it measured."""
        return self._account.used_ns

    @property
    def is_used(self) -> bool:
        """Has it processes that are alive?"""
        return bool(self._members)

    @property
    def outside(self) -> list[int]:
        """Processes of the tenant that use the GPU without the shim."""
        return [member.pid for member in self._members.values() if member.outside]

    def has_member(self, pid: int) -> bool:
        """With a row, and not another process that has its number now."""
        member = self._members.get(pid)
        return member is not None and member.started == processes.started(pid)

    def has_entered(self, pid: int) -> bool:
        """As a launcher, or with a row through the shim."""
        return self._entries.get(pid, -1) == processes.started(pid) or (
            self.has_member(pid) and not self._members[pid].outside
        )

    def containers(self) -> set[str]:
        """Those that its launchers are in."""
        found = (processes.container(pid) for pid, start in self._entries.items() if processes.started(pid) == start)
        return {name for name in found if name}

    def _add(self, pid: int, before: int = 0, outside: bool = False) -> Member:
        taken = {member.place for member in self._members.values()}
        place = next((place for place in range(self._account.places) if place not in taken), None)
        if place is None:
            raise AccountFull(f"this slice has {self._account.places} processes that use the GPU, the most that it may")
        pidfd = os.pidfd_open(pid)
        member = Member(place, pid, processes.started(pid), pidfd, processes.inside(pid), before, outside)
        self._watch(member)
        self._account.write(place, OUTSIDE if outside else pid)
        self._save()
        return member

    def _watch(self, member: Member) -> None:
        self._members[member.pid] = member
        asyncio.get_running_loop().add_reader(member.pidfd, self._forget, member)

    def _unwatch(self, member: Member) -> None:
        asyncio.get_running_loop().remove_reader(member.pidfd)
        os.close(member.pidfd)

    def _forget(self, member: Member) -> None:
        if self._members.get(member.pid) is not member:
            return
        self._unwatch(member)
        del self._members[member.pid]
        self._account.write(member.place, 0)
        self._save()

    def _save(self) -> None:
        """For a successor: who has which row."""
        rows = [[member.place, member.pid, member.started, member.before] for member in self._members.values()]
        draft = self._directory / f"{_MEMBERS_FILE}.new"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(rows, file)
        draft.rename(self._directory / _MEMBERS_FILE)

    def _adopt(self) -> None:
        """A predecessor's processes that are alive; the other rows are nobody's."""
        try:
            rows = json.loads((self._directory / _MEMBERS_FILE).read_text())
        except (OSError, ValueError):
            rows = []
        for place, pid, start, before in rows:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            if processes.started(pid) != start:  # its number is another's by now
                os.close(pidfd)
                continue
            self._watch(Member(place, pid, start, pidfd, processes.inside(pid), before))
        kept = {member.place for member in self._members.values()}
        for place in range(self._account.places):
            if place in kept:
                self._account.reach(place)
            else:
                self._account.write(place, 0)

    # --- numbers ---

    def publish(self, allowance: Allowance) -> None:
        """Onto the page, for who asks the daemon."""
        said = self._said()
        now, clock = time.time_ns(), time.monotonic_ns()

        def active(busy_at: int) -> int:
            return now - (clock - busy_at) if 0 < busy_at <= clock else 0

        self._page.write_shim(
            [
                ProcessRow(pid, member.inside, said[pid].device + said[pid].managed, 0, active(said[pid].busy_at))
                for pid, member in self._members.items()
            ],
            round(1000 * allowance.cores),
            sum(row.managed for row in said.values()),
            self._free(allowance, said),
        )

    def note_refusal(self, allowance: Allowance, pid: int, size: int) -> None:
        """A process was refused so many bytes."""
        self._page.write_refusal(pid, size, self._free(allowance, self._said()), time.time_ns())

    def _said(self) -> dict[int, Said]:
        """By process; of one without the shim what the driver says."""
        rows = self._account.read(member.place for member in self._members.values())
        return {
            pid: Said(member.seen, 0, 0) if member.outside else rows[member.place]
            for pid, member in self._members.items()
        }

    @staticmethod
    def _free(allowance: Allowance, said: dict[int, Said]) -> int:
        device, managed = sum(row.device for row in said.values()), sum(row.managed for row in said.values())
        return max(0, min(allowance.memory - device, allowance.limit - device - managed))

    # --- the driver's word ---

    def witness(self, held: Mapping[int, int], quota: int) -> None:
        """Compare with the driver's account. held: bytes by process, of those that are this tenant's."""
        for pid, size in held.items():
            if pid not in self._members:
                self._charge(pid, size)
        for member in [member for member in self._members.values() if member.outside]:
            member.seen = held.get(member.pid, 0)
            self._account.write(member.place, OUTSIDE, member.seen)
            if not member.seen:
                self._forget(member)
        sizes = {pid: max(0, held.get(pid, 0) - member.before) for pid, member in self._members.items()}
        total = sum(sizes.values())
        if quota < self._quota:
            self._tolerated = max(total, self._tolerated)
        self._tolerated = min(self._tolerated, total)
        self._quota = quota
        over = total - max(quota, self._tolerated) - SLACK - SLACK_OF_PROCESS * len(sizes)
        self._over = self._over + 1 if over > 0 else 0
        if self._over >= OVER_SAMPLES:
            self._over = 0
            self._end_holders(sizes, over)

    def _charge(self, pid: int, size: int) -> None:
        try:
            self._add(pid, outside=True)
        except (AccountFull, OSError) as error:
            log.warning("process %d holds %d bytes of its slice's GPU without the shim: %s", pid, size, error)
            return
        log.warning("process %d uses the GPU of its slice without the shim: %d bytes are charged", pid, size)

    def _end_holders(self, sizes: dict[int, int], over: int) -> None:
        """Who goes round the account, until the rest fits: without the shim, or saying less than the driver does."""
        said = self._said()
        unsaid = {pid: size if self._members[pid].outside else size - said[pid].device for pid, size in sizes.items()}
        for pid in sorted(unsaid, key=lambda pid: (not self._members[pid].outside, -unsaid[pid])):
            if over <= 0 or unsaid[pid] <= SLACK_OF_PROCESS:
                return
            if self._end(self._members[pid]):
                log.warning("ended process %d: it held %d bytes that its slice does not have", pid, sizes[pid])
                over -= sizes[pid]

    @staticmethod
    def _end(member: Member) -> bool:
        try:
            signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except OSError as error:
            log.error("process %d of a slice can't be ended: %s", member.pid, error)
            return False
        return True
