"""A tenant's join socket: launchers hand over their listener here, and the shim tier gets its account here.

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..native import layout
from .guard import GuardAway, GuardError
from .page import SlicePage
from .shim_tier import RETURN_SECONDS, AccountFull, Allowance, ShimTier

log = logging.getLogger("vgpud.join")

_MESSAGE = 256
_SO_PEERPIDFD = 77  # Linux 6.5; Python has no name for it
_MAX_CONNECTIONS = 512
MAX_LISTENERS = 64


@dataclass(eq=False)
class _Peer:
    """Who is at the other end of a connection. attached: it has a row in the account of tier `shim`."""

    connection: socket.socket
    pid: int
    pidfd: int
    stranger: bool
    attached: bool = False

    def hang_up(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.connection)
        loop.remove_reader(self.pidfd)
        self.connection.close()


class NoEntry(Exception):
    """No program gets into this slice, in whatever tier; the message says why and what to do."""


class JoinServer:
    """The join socket of one tenant.

    allowance() is what it may have in tier `shim`, and left_over(pid) what the driver still has of a dead process of
    that number. set_managed(pid, bytes) puts a process' managed memory on the guard's account: False is no. probe(pid)
    says why the guard can't hold that process, or None, or raises NoEntry. join(fd) takes a listener.
    note_unknown(symbol) is told of a driver function that the shim has never heard of and let through,
    note_refused(pid, symbol, bytes) of an allocation that failed for want of memory.
    guarded: the guard held it already before the daemon was started.
    allow_shim: where the guard can't, may the tenant run in the shim tier? owner: the user who alone may join.
    """

    def __init__(
        self,
        directory: Path,
        page: SlicePage,
        allowance: Callable[[], Allowance],
        left_over: Callable[[int], int],
        set_managed: Callable[[int, int], bool],
        probe: Callable[[int], str | None],
        join: Callable[[int], str | None],
        note_unknown: Callable[[str], None],
        note_refused: Callable[[int, str, int], None],
        allow_shim: bool,
        guarded: bool = False,
        owner: int | None = None,
    ) -> None:
        self._owner = owner
        self._directory = directory
        self._page = page
        self._allowance = allowance
        self._left_over = left_over
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
        self._guarded = guarded
        self._shim: ShimTier | None = (
            ShimTier(directory, page, left_over) if not guarded and ShimTier.has_one(directory) else None
        )
        self._peers: set[_Peer] = set()
        self._managed_by: dict[int, _Peer] = {}  # who speaks for a process' managed memory
        asyncio.get_running_loop().add_reader(self._server, self._accept)

    def close(self) -> None:
        for peer in self._peers:
            peer.hang_up()
            os.close(peer.pidfd)
        self._peers.clear()
        self._managed_by.clear()
        if self._shim:
            self._shim.close()
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
        if peer.attached and self._shim and _has_ended(peer.pidfd):
            self._shim.detach(peer.pid)
        asyncio.get_running_loop().call_later(RETURN_SECONDS, self._drop_later, peer)

    def _drop_later(self, peer: _Peer) -> None:
        if peer.attached and self._shim and not any(other.pid == peer.pid for other in self._peers if other.attached):
            self._shim.detach(peer.pid)
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
            answer, given = self._answer(peer, data, fds)
        except Exception:  # one tenant's word must neither stop the others nor leave it waiting
            log.exception("a word on a join socket: %r", data[:80])
            answer, given = "refused this went wrong in the daemon: see its log", []
        finally:
            for fd in fds:
                os.close(fd)
        try:
            socket.send_fds(peer.connection, [answer.encode()], given)
        except OSError:
            self._drop(peer)
        finally:
            for fd in given:
                os.close(fd)

    def _answer(self, peer: _Peer, data: bytes, fds: list[int]) -> tuple[str, list[int]]:
        """A line, and descriptors to give with it."""
        if data == b"account" and self.shim and not peer.stranger:
            return self._attach(peer, self.shim)
        return self._answer_in_words(peer, data, fds), []

    def _answer_in_words(self, peer: _Peer, data: bytes, fds: list[int]) -> str:
        if peer.stranger:
            return "refused this slice is another user's"
        words = data.decode("ascii", "replace").split()
        match words:
            case ["probe"]:
                if self._shim and self._shim.is_used:
                    return self._enter_shim(peer, "this slice has programs in tier shim")
                try:
                    reason = self._probe(peer.pid)
                except NoEntry as error:
                    return f"refused {error}"
                except GuardAway as error:  # the launcher asks again
                    return f"away {error}"
                if reason is not None and self._guarded:
                    return f"refused this slice is held by the guard, and the guard can't hold this process: {reason}"
                return "guard" if reason is None else self._enter_shim(peer, reason)
            case ["join"] if self._shim and self._shim.is_used:
                return "refused this slice has programs in tier shim"
            case ["join"] if len(fds) == 1 and _is_listener(fds[0]):
                refusal = self._join(os.dup(fds[0]))
                if refusal is None:
                    self._be_guarded()
                return "guard" if refusal is None else f"refused {refusal}"
            case ["join"]:
                return "refused join comes with one seccomp listener"
            case ["shim" | "full", *_] if self._guarded:
                return "refused this slice is held by the guard"
            case ["shim", *reason]:
                return self._enter_shim(peer, " ".join(reason))
            case ["full", amount] if amount.isdigit() and len(amount) < 20 and self._shim:
                self._shim.note_refusal(self._allowance(), peer.pid, int(amount))
                return "ok"
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

    def _enter_shim(self, peer: _Peer, reason: str) -> str:
        if not self._allow_shim:
            return (
                f"refused the guard can't hold this process ({reason}), and this node allows no weaker tier. "
                "Run the node daemon as root, or allow it with --allow-shim-tier"
            )
        log.warning("tier shim: the guard can't hold process %d (%s)", peer.pid, reason)
        if not self._shim:
            self._shim = ShimTier(self._directory, self._page, self._left_over)
        self._shim.enter(peer.pid)
        self.refresh()
        return "shim"

    def _be_guarded(self) -> None:
        self._guarded = True
        if self._shim:  # it was in the weaker tier once
            self._shim.remove()
            self._shim = None

    def _attach(self, peer: _Peer, shim: ShimTier) -> tuple[str, list[int]]:
        try:
            place, account = shim.attach(peer.pid)
        except (AccountFull, GuardError, OSError) as error:
            return f"refused {error}", []
        peer.attached = True
        return f"ok {place}", [account]

    @property
    def shim(self) -> ShimTier | None:
        """Where the tenant is in tier `shim`."""
        return None if self._guarded else self._shim

    def refresh(self) -> None:
        """In tier `shim` the page is the daemon's to write, also after the guard wrote its own numbers there."""
        if self.shim:
            self.shim.publish(self._allowance())

    def _managed(self, peer: _Peer, amount: int) -> str:
        try:
            fits = self._set_managed(peer.pid, amount)
        except GuardAway as error:  # the shim asks again
            return f"away {error}"
        except GuardError as error:
            return f"refused {error}"
        self._managed_by[peer.pid] = peer
        return "ok" if fits else "full"


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
