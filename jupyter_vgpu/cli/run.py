"""`jupyter vgpu run`: a command in a slice of its own, which ends with it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

from ..client import Client, DaemonError, Json
from ..native import program

_PR_SET_PDEATHSIG = 1
NO_SLICE = 125  # as containers say "could not start"
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run(client: Client, request: Json, command: list[str]) -> int:
    """Returns the command's exit code, or 128 + the signal that ended it."""
    name = f"run-{os.getpid()}-{os.path.basename(command[0])}"
    # tied to this process: a kill -9 leaves no slice behind
    tenant = client.request("POST", "/api/tenants", request | {"name": name, "until_pid": os.getpid()})
    try:
        launch = tenant["launch"]
        environment = os.environ | launch["environment"]
        argv = [str(program("vgpu-run")), "--dir", launch["directory"], "--", *command]
        # the terminal sends Ctrl-C to the command itself; this process only waits for it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = subprocess.Popen(argv, env=environment, preexec_fn=_default_signals)

        def forward(number: int, _: FrameType | None) -> None:
            child.send_signal(number)

        for number in _FORWARDED:
            signal.signal(number, forward)
        code = child.wait()
        return code if code >= 0 else 128 - code
    finally:
        try:
            client.request("DELETE", f"/api/tenants/{tenant['id']}")
        except DaemonError as error:
            if error.status != 404:
                print(f"jupyter vgpu run: {error}", file=sys.stderr)


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # a runner that is killed takes the command along: its slice is gone by then
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
