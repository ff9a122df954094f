"""NVIDIA's Multi-Process Service for GPUs that trusted slices share at the same time: its control daemon, kept alive.

The daemon goes on when vgpud ends, and the next vgpud finds it by its directory. Facts: NVIDIA's MPS documentation, and
what was measured (docs/decisions.md).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ..quotas import Policy, Quota
from .gpus import Gpu

log = logging.getLogger("vgpud")

_PROGRAM = "nvidia-cuda-mps-control"
_START_S, _ANSWER_S = 10, 5
_LOG_MAX = 1 << 20


class MpsError(RuntimeError):
    """It does not run; the message says why."""


class Mps:
    """The service of some GPUs. Its directory is mounted where a slice on one of them runs."""

    def __init__(self, run_dir: Path, gpus: Sequence[Gpu]) -> None:
        self.directory = run_dir / "mps"
        self._log, self._serves = run_dir / "mps.log", run_dir / "mps.gpus"
        self._gpus = [gpu for gpu in gpus if gpu.mps]
        self._child: subprocess.Popen[bytes] | None = None
        self._changing = threading.Lock()  # it is looked after on a thread
        self._has_stopped = False

    @property
    def is_wanted(self) -> bool:
        return bool(self._gpus)

    def start(self, is_used: bool) -> None:
        """Take over the one that runs, or start one. is_used: slices from before are under it. Raises MpsError."""
        if self.is_wanted and not shutil.which(_PROGRAM):
            raise MpsError(f"mps_gpus needs {_PROGRAM}, which is not here: install it with the driver, or leave it out")
        served = self._serves.read_text() if self._serves.exists() else ""
        if served != self._uuids and self._answers():
            if is_used:
                raise MpsError(
                    f"MPS runs for {served or 'other GPUs'}, and slices are under it: stop their servers before "
                    "mps_gpus is changed"
                )
            self._quit()
        if self.is_wanted and not self._answers():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.directory.chmod(0o755)  # other users' programs come by it
            self._spawn()

    @property
    def _uuids(self) -> str:
        return ",".join(gpu.uuid for gpu in self._gpus)

    def _spawn(self) -> None:
        # each user's clients would wait for those of the others to end; that users share one is root's to say
        together = ["-multiuser-server"] if os.geteuid() == 0 else []
        visible = {"CUDA_VISIBLE_DEVICES": self._uuids}
        self._serves.write_text(self._uuids)
        with self._log.open("ab") as said:
            self._child = subprocess.Popen(
                [_PROGRAM, *together, "-f"],
                env=os.environ | self._where() | visible,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        end = time.monotonic() + _START_S
        while not self._answers():
            if self._child.poll() is not None or time.monotonic() > end:
                raise MpsError(f"{_PROGRAM} did not start: see {self._log}")
            time.sleep(0.1)
        log.info("MPS for GPU %s, in %s", ", ".join(str(gpu.index) for gpu in self._gpus), self.directory)

    def look(self) -> None:
        """Called now and then, on a thread: starts it again where it has ended."""
        with self._changing:
            if self.is_wanted and not self._has_stopped:
                self._look()

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > _LOG_MAX:
                os.truncate(self._log, 0)
        if self._child:
            self._child.poll()
        if not self._answers():
            log.warning("MPS has ended, and the programs under it with it; starting it again")
            try:
                self._spawn()
            except (MpsError, OSError) as error:  # and it is tried again
                log.error("%s", error)

    def stop(self) -> None:
        """No slice is left."""
        with self._changing:
            self._has_stopped = True
            if self.is_wanted:
                self._quit()

    def _quit(self) -> None:
        self._ask("quit")
        end = time.monotonic() + _ANSWER_S
        while self._answers() and time.monotonic() < end:  # a predecessor's is no child of ours
            time.sleep(0.05)
        if self._child:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_ANSWER_S)

    def environment(self, quota: Quota) -> dict[str, str]:
        """Of programs in a slice. `burst`: all that the others leave."""
        percent = 100.0 if quota.policy is Policy.BURST else quota.cores
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self.directory), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{percent:g}"}

    def _where(self) -> dict[str, str]:
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self.directory), "CUDA_MPS_LOG_DIRECTORY": str(self.directory)}

    def _answers(self) -> bool:
        return (self.directory / "control").exists() and self._ask("get_server_list")

    def _ask(self, command: str) -> bool:
        try:
            done = subprocess.run(
                [_PROGRAM],
                input=f"{command}\n".encode(),
                env=os.environ | self._where(),
                capture_output=True,
                timeout=_ANSWER_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0
