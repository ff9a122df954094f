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
        self._log = run_dir / "mps.log"
        self._gpus = [gpu for gpu in gpus if gpu.mps]
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def is_wanted(self) -> bool:
        return bool(self._gpus)

    def start(self) -> None:
        """Take over the one that runs, or start one. Raises MpsError."""
        if not self.is_wanted:
            return
        if not shutil.which(_PROGRAM):
            raise MpsError(f"mps_gpus needs {_PROGRAM}, which is not here: install it with the driver, or leave it out")
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not self._answers():
            self._spawn()

    def _spawn(self) -> None:
        # each user's clients would wait for those of the others to end; that users share one is root's to say
        together = ["-multiuser-server"] if os.geteuid() == 0 else []
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in self._gpus)}
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
        if not self.is_wanted:
            return
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > _LOG_MAX:
                os.truncate(self._log, 0)
        if self._child:
            self._child.poll()
        if not self._answers():
            log.warning("MPS has ended, and the programs under it with it; starting it again")
            try:
                self._spawn()
            except MpsError as error:
                log.error("%s", error)

    def stop(self) -> None:
        """No slice is left."""
        if self.is_wanted:
            self._ask("quit")
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
