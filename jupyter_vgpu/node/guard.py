"""vgpu-guard from outside: start it, talk to it, notice its end and bring up a successor.

The daemon keeps every listener, so a tenant whose guard was killed waits in its call and goes on under the
next guard. The guard keeps running when the daemon ends, so the same holds the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from ..native import layout, program
from ..quotas import Quota
from .gpus import Gpu

log = logging.getLogger("vgpud.guard")

_START_SECONDS = 10
_ANSWER_SECONDS = 5
_MESSAGE = 2048


class GuardError(RuntimeError):
    """The guard said no, or is away."""


class GuardAway(GuardError):
    """It is being restarted, or does not answer: ask again."""


class Guard:
    """The node's guard."""

    def __init__(self, run_dir: Path, gpus: list[Gpu]) -> None:
        self._socket_path = run_dir / "guard.sock"
        self._state_path = run_dir / "ledger"
        self._is_emulated = gpus[0].emulated
        whole, parts = [gpu for gpu in gpus if not gpu.mig], [gpu for gpu in gpus if gpu.mig]
        # as the guard counts GPUs: the last stands for all parts, which are in no guard's hands
        self._wheres: list[str] = [gpu.where for gpu in whole] + [layout()["unguarded"]] * bool(parts)
        self.numbers = {gpu.uuid: at for at, gpu in enumerate(whole)} | {gpu.uuid: len(whole) for gpu in parts}
        self._revived: Callable[[], None] = lambda: None
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._child: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._retry: asyncio.TimerHandle | None = None
        self.pid = 0
        self.restarts = 0
        self.backend = ""

    # --- life ---

    def start(self, revived: Callable[[], None]) -> list[tuple[int, int]]:
        """Adopt the guard that runs, or start one. Returns (slot, listener) for each that the old one held.

        revived: called with each successor, to tell it the tenants again. Raises GuardError.
        """
        self._revived = revived
        try:
            adopted = self._adopt() if self._connect() else None
            if adopted is None:
                self._spawn()
            self._watch()
        except OSError as error:
            raise GuardError(f"vgpu-guard can't be started, or ended while it was taken over ({error})") from error
        return adopted or []

    def _adopt(self) -> list[tuple[int, int]] | None:
        """None: it was for other GPUs, and for nobody on them, and has been ended."""
        adopted = self._take_listeners()
        # it counts them as it was started
        words = Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")
        told = [value for option, value in pairwise(words) if option == "--gpu"]
        if told in (self._wheres, [*self._wheres, layout()["unguarded"]]):
            log.info("took over guard %d with %d listeners", self.pid, len(adopted))
            return adopted
        if not adopted:
            self._end()
            return None
        for _, fd in adopted:
            os.close(fd)
        raise GuardError(
            f"vgpu-guard {self.pid} was started for other GPUs ({', '.join(told)}) than this node shares now "
            f"({', '.join(self._wheres)}): stop the GPU servers of this node, and start again"
        )

    def _arguments(self) -> list[str]:
        self.backend = "emulated" if self._is_emulated else "nvidia"
        arguments = [str(program("vgpu-guard")), "--socket", str(self._socket_path), "--state", str(self._state_path)]
        arguments += ["--backend", self.backend]
        for where in self._wheres:
            arguments += ["--gpu", where]
        if os.environ.get("VGPU_GUARD_TRACE"):
            arguments.append("--trace")
        return arguments

    def _spawn(self) -> None:
        if self._child is None or self._child.poll() is not None:  # else it takes its time, and is waited for again
            # a session of its own: Ctrl-C in the daemon's terminal is for the daemon to act on
            self._child = subprocess.Popen(self._arguments(), start_new_session=True, stdin=subprocess.DEVNULL)
        end = time.monotonic() + _START_SECONDS
        while not self._connect():
            if self._child.poll() is not None:
                raise GuardError(
                    f"vgpu-guard ended with code {self._child.returncode} at its start: see its message above"
                )
            if time.monotonic() > end:
                raise GuardError(f"vgpu-guard did not answer within {_START_SECONDS} s")
            time.sleep(0.005)

    def _connect(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(str(self._socket_path))
        except OSError:
            connection.close()
            return False
        self._socket = connection
        try:
            protocol, self_pid, self.backend = self._ask("hello").split()
        except GuardError:
            return False
        if int(protocol) != layout()["protocol"]:
            raise GuardError(
                f"vgpu-guard {self_pid} is of another version (protocol {protocol}, not {layout()['protocol']}): "
                f"stop the GPU servers of this node, end it with 'kill {self_pid}', and start again"
            )
        self.pid = int(self_pid)
        return True

    def _watch(self) -> None:
        self._pidfd = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self) -> None:
        self._unwatch()
        self._disconnect()
        if self._child and self._child.pid == self.pid:
            self._child.wait()
        log.warning("guard %d ended; starting another", self.pid)
        self._revive()

    def _revive(self) -> None:
        self._retry = None
        try:
            self._spawn()
            self._watch()
        except Exception as error:  # noqa: BLE001 (whatever it was, nobody else tries again)
            # tenants wait meanwhile: nothing is let through without a guard
            self._unwatch()
            self._disconnect()
            self._failures += 1
            delay = min(10.0, 0.1 * 2 ** min(self._failures, 10))
            log.error("the guard does not come up (%s); next try in %.1f s", error, delay)
            self._retry = asyncio.get_running_loop().call_later(delay, self._revive)
        else:
            self.restarts += 1
            self._failures = 0
            self._revived()

    def _disconnect(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def stop(self) -> None:
        """End the guard: every channel goes back on."""
        self._let_go()
        self._end()

    def leave(self) -> None:
        """Let go of the guard; it goes on guarding."""
        self._let_go()
        self._disconnect()

    def _let_go(self) -> None:
        self._unwatch()
        if self._retry:
            self._retry.cancel()
            self._retry = None

    def _end(self) -> None:
        with contextlib.suppress(GuardError):
            self._ask("end")
        self._disconnect()
        if self._child:
            try:
                self._child.wait(_ANSWER_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        else:
            end = time.monotonic() + _ANSWER_SECONDS
            while Path(f"/proc/{self.pid}").exists() and time.monotonic() < end:
                time.sleep(0.01)

    # --- words ---

    def _ask(self, text: str, fd: int = -1) -> str:
        # a guard that was slow once is asked anew; one that ended is being replaced
        if not self._socket and text != "hello" and self._pidfd >= 0:
            self._connect()
        if not self._socket:
            raise GuardAway("the guard is being restarted")
        try:
            if fd >= 0:
                socket.send_fds(self._socket, [text.encode()], [fd])
            else:
                self._socket.send(text.encode())
            answer = self._socket.recv(_MESSAGE).decode()
        except OSError as error:
            self._disconnect()
            raise GuardAway(f"the guard does not answer: {error}") from error
        if not answer:  # it ended in mid-answer
            self._disconnect()
            raise GuardAway("the guard went away")
        if answer == "ok" or answer.startswith("ok "):
            return answer[3:]
        raise GuardError(answer.removeprefix("error "))

    def _take_listeners(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        if not self._socket:
            return found
        self._socket.send(b"listeners")
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE, 1)
            if not data.startswith(b"listener ") or not fds:
                return found
            os.set_inheritable(fds[0], False)
            found.append((int(data.split()[1]), fds[0]))

    def set_tenant(self, slot: int, gpu: int, quota: Quota, oversubscribe: float, name: str, page: int) -> None:
        """oversubscribe: a factor of the memory, for device and managed memory together."""
        policy = layout()["policies"][str(quota.policy)]
        words = (slot, gpu, quota.memory, round(quota.cores * 1000), policy, round(oversubscribe * 100), name)
        self._ask(f"tenant {' '.join(map(str, words))}", page)

    def set_managed(self, slot: int, pid: int, size: int) -> bool:
        """A process holds `size` bytes of managed memory in all. False: that is over the tenant's quota."""
        return self._ask(f"managed {slot} {pid} {size}") != "full"

    def memory_of(self, gpu: int, pid: int) -> int:
        """Bytes of a GPU that a process has by the driver's own account; what it imported is its maker's."""
        return int(self._ask(f"memory {gpu} {pid}"))

    def remove_tenant(self, slot: int) -> None:
        self._ask(f"remove {slot}")

    def add_listener(self, slot: int, fd: int, *, old: bool = False) -> None:
        """old: a guard that has ended listened by it."""
        self._ask(f"listener {slot}{' old' if old else ''}", fd)

    def probe(self, pid: int) -> str | None:
        """None when the guard can reach into that process, else why not. Raises GuardAway."""
        try:
            self._ask(f"probe {pid}")
        except GuardAway:
            raise
        except GuardError as error:
            return str(error)
        return None
