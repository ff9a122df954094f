"""A tenant's join socket: launchers hand over their listener here, and the shim tier keeps its ledger here.

Whoever can connect is the tenant: its directory is mounted into no other. Nothing that it says is believed
beyond that, and what it says wrong is answered in words and hurts nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..native import layout
from .guard import GuardAway, GuardError
from .page import ProcessRow, SlicePage, pid_inside

log = logging.getLogger("vgpud.join")

_MESSAGE = 256
_SO_PEERPIDFD = 77  # Linux 6.5; Python has no name for it
_RETURN_SECONDS = 5
_MAX_CONNECTIONS = 512
MAX_LISTENERS = 64


@dataclass(eq=False)
class _Peer:
    """Who is at the other end of a connection. held: bytes, in tier `shim`."""

    connection: socket.socket
    pid: int
    pidfd: int
    stranger: bool
    held: int = 0

    @cached_property
    def pid_inside(self) -> int:
        return pid_inside(self.pid)

    def hang_up(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.connection)
        loop.remove_reader(self.pidfd)
        self.connection.close()


class JoinServer:
    """The join socket of one tenant.

    quota() is its memory. set_managed(pid, bytes) puts a process' managed memory on the guard's account: False is no.
    probe(pid) says why the guard can't hold that process, or None. join(fd) takes a listener. note_unknown(symbol) is
    told of a driver function that the shim has never heard of and let through, note_refused(pid, symbol, bytes) of an
    allocation that failed for want of memory.
    allow_shim: where the guard can't, may the tenant run in the shim tier? owner: the user who alone may join.
    """

    def __init__(
        self,
        directory: Path,
        page: SlicePage,
        quota: Callable[[], int],
        set_managed: Callable[[int, int], bool],
        probe: Callable[[int], str | None],
        join: Callable[[int], str | None],
        note_unknown: Callable[[str], None],
        note_refused: Callable[[int, str, int], None],
        allow_shim: bool,
        owner: int | None = None,
    ) -> None:
        self._owner = owner
        self._page = page
        self._quota = quota
        self._set_managed = set_managed
        self._probe = probe
        self._join = join
        self._note_unknown = note_unknown
        self._note_refused = note_refused
        self._allow_shim = allow_shim
        self._path = directory / layout()["join_socket"]
        self._path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._server.bind(str(self._path))
        self._path.chmod(0o666)
        self._server.listen(128)
        self._guarded = False
        self._publishes = False
        self._peers: set[_Peer] = set()
        self._managed_by: dict[int, _Peer] = {}  # who speaks for a process' managed memory
        asyncio.get_running_loop().add_reader(self._server, self._accept)

    def close(self) -> None:
        for peer in self._peers:
            peer.hang_up()
            os.close(peer.pidfd)
        self._peers.clear()
        self._managed_by.clear()
        asyncio.get_running_loop().remove_reader(self._server)
        self._server.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:
            return
        if len(self._peers) >= _MAX_CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        stranger = self._owner is not None and uid not in (self._owner, 0)
        try:
            peer = _Peer(connection, pid, _pidfd(connection, pid), stranger)
        except OSError:  # it has ended: its number may be another's by now
            connection.close()
            return
        self._peers.add(peer)
        loop = asyncio.get_running_loop()
        loop.add_reader(connection, self._readable, peer)
        loop.add_reader(peer.pidfd, self._drop, peer)

    def _drop(self, peer: _Peer) -> None:
        if peer not in self._peers:
            return
        self._peers.discard(peer)
        peer.hang_up()
        # it ended, which the guard sees; or became another (exec), or closed what it did not open and will say it again
        asyncio.get_running_loop().call_later(_RETURN_SECONDS, self._drop_managed, peer)
        if peer.held:
            self._publish()

    def _drop_managed(self, peer: _Peer) -> None:
        if self._managed_by.get(peer.pid) is peer:
            del self._managed_by[peer.pid]
            if not _has_ended(peer.pidfd):  # else its number may be another's
                with contextlib.suppress(GuardError):
                    self._set_managed(peer.pid, 0)
        os.close(peer.pidfd)

    def _readable(self, peer: _Peer) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(peer.connection, _MESSAGE, 4)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        try:
            if not data:
                self._drop(peer)
                return
            answer = self._answer(peer, data, fds)
        except Exception:  # one tenant's word must neither stop the others nor leave it waiting
            log.exception("a word on a join socket: %r", data[:80])
            answer = "refused this went wrong in the daemon: see its log"
        finally:
            for fd in fds:
                os.close(fd)
        try:
            peer.connection.send(answer.encode())
        except OSError:
            self._drop(peer)

    def _answer(self, peer: _Peer, data: bytes, fds: list[int]) -> str:
        if peer.stranger:
            return "refused this slice is another user's"
        words = data.decode("ascii", "replace").split()
        match words:
            case ["probe"]:
                reason = self._probe(peer.pid)
                return "guard" if reason is None else self._shim(reason)
            case ["join"] if len(fds) == 1 and _is_listener(fds[0]):
                refusal = self._join(os.dup(fds[0]))
                self._guarded = self._guarded or refusal is None
                return "guard" if refusal is None else f"refused {refusal}"
            case ["join"]:
                return "refused join comes with one seccomp listener"
            case ["shim" | "reserve" | "release", *_] if self._guarded or (not self._allow_shim and words[0] != "shim"):
                return "refused this slice is held by the guard"
            case ["shim", *reason]:
                return self._shim(" ".join(reason))
            case ["reserve", amount] if amount.isdigit() and len(amount) < 20:
                return self._reserve(peer, int(amount))
            case ["release", amount] if amount.isdigit() and len(amount) < 20:
                return self._release(peer, int(amount))
            case ["refused", symbol, amount] if symbol.isidentifier() and amount.isdigit() and len(amount) < 21:
                self._note_refused(peer.pid, symbol, int(amount))
                return "ok"
            case ["managed", amount] if amount.isdigit() and len(amount) < 20:
                return self._managed(peer, int(amount))
            case ["unknown", symbol] if symbol.isidentifier():
                self._note_unknown(symbol)
                return "ok"
            case _:
                return "refused unknown message: this socket speaks with vgpu-run and libvgpu.so"

    def _shim(self, reason: str) -> str:
        if not self._allow_shim:
            return (
                f"refused the guard can't hold this process ({reason}), and this node allows no weaker tier. "
                "Run the node daemon as root, or allow it with --allow-shim-tier"
            )
        log.warning("tier shim: the guard can't hold process (%s)", reason)
        self._publish()
        return "shim"

    def refresh(self) -> None:
        """The guard wrote its own numbers on the page: in tier `shim` it has none."""
        if self._publishes:
            self._publish()

    def _publish(self, refusal: tuple[int, int, int, int] | None = None) -> None:
        self._publishes = True
        rows: dict[int, ProcessRow] = {}
        for peer in self._peers:
            before = rows[peer.pid].memory if peer.pid in rows else 0
            if peer.held:
                rows[peer.pid] = ProcessRow(peer.pid, peer.pid_inside, before + peer.held, 0)
        self._page.write_shim(list(rows.values()), self._quota(), refusal)

    def _reserve(self, peer: _Peer, amount: int) -> str:
        free = self._quota() - sum(other.held for other in self._peers)
        if amount > free:
            self._publish((peer.pid, amount, max(0, free), time.time_ns()))
            return "full"
        peer.held += amount
        self._publish()
        return "ok"

    def _managed(self, peer: _Peer, amount: int) -> str:
        try:
            fits = self._set_managed(peer.pid, amount)
        except GuardAway as error:  # the shim asks again
            return f"away {error}"
        except GuardError as error:
            return f"refused {error}"
        self._managed_by[peer.pid] = peer
        return "ok" if fits else "full"

    def _release(self, peer: _Peer, amount: int) -> str:
        peer.held = max(0, peer.held - amount)
        self._publish()
        return "ok"


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()  # select() knows no descriptor above 1,023
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _pidfd(connection: socket.socket, pid: int) -> int:
    """Of who connected. Raises OSError when that process has ended."""
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, struct.calcsize("i"))
        pidfd = int(struct.unpack("i", data)[0])
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        pidfd = os.pidfd_open(pid)
    if _has_ended(pidfd):
        os.close(pidfd)
        raise ProcessLookupError(errno.ESRCH, "the peer has ended")
    return pidfd


def _is_listener(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:seccomp notify"
    except OSError:
        return False
