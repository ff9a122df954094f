"""`jupyter vgpu doctor`: what works on this machine, in plain words, and the way out where it does not."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from ..client import Client, DaemonError
from ..inside import slice_client
from ..native import NativeMissing, native_dir, program
from ..paths import ADMIN_SOCKET, ENV_SLICE_DIR
from ..quotas import Quota

_SECCOMP_ACTIONS = Path("/proc/sys/kernel/seccomp/actions_avail")
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_MIN_OPEN_DRIVER = 515  # the first whose ioctl structs are these; see shim/abi/rm_abi.h


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `way_out` is empty when all is well."""

    topic: str
    state: Literal["ok", "limited", "missing"]
    text: str
    way_out: str = ""


def _kernel() -> Finding:
    release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in platform.release().split(".")[:2])
    actions = _SECCOMP_ACTIONS.read_text().split() if _SECCOMP_ACTIONS.exists() else []
    if "user_notif" not in actions or release < (5, 6):
        return Finding(
            "kernel",
            "missing",
            f"Linux {platform.release()} can't hand a program's driver calls to the guard",
            "use Linux 5.6 or newer with seccomp; until then only the shim tier works",
        )
    if release < (5, 19):
        return Finding(
            "kernel",
            "limited",
            f"Linux {platform.release()} works, but a signal in the middle of a driver call makes it run twice",
            "Linux 5.19 or newer avoids that",
        )
    return Finding("kernel", "ok", f"Linux {platform.release()} has seccomp user notification")


def _native() -> Finding:
    try:
        program("vgpu-guard")
        program("vgpu-run")
    except NativeMissing as error:
        return Finding("package", "missing", str(error), "install from a wheel, or with cmake and a C compiler present")
    return Finding("package", "ok", f"guard, launcher and shim are in {native_dir()}")


def _reach() -> Finding:
    scope = int(_YAMA.read_text()) if _YAMA.exists() else 0
    if os.geteuid() == 0:
        return Finding("reach", "ok", "as root the guard can hold every user's processes")
    if scope == 0:
        return Finding(
            "reach",
            "limited",
            "as an ordinary user the guard can hold this user's processes, but no other's",
            "run the node daemon as root to serve several users",
        )
    return Finding(
        "reach",
        "limited",
        f"Yama (ptrace_scope {scope}) keeps an ordinary user's guard out: only the weaker shim tier will run",
        "run the node daemon as root, or set kernel.yama.ptrace_scope to 0",
    )


def _driver() -> Finding:
    if not _DRIVER_VERSION.exists():
        return Finding(
            "GPU",
            "limited",
            "there is no NVIDIA driver here: slices of an emulated GPU work",
            "install the driver for real ones; to try things out: jupyter vgpu node --emulate",
        )
    first = _DRIVER_VERSION.read_text().splitlines()[0]
    major = next((int(word.split(".")[0]) for word in first.split() if word.count(".") >= 1 and word[0].isdigit()), 0)
    if major < _MIN_OPEN_DRIVER:
        return Finding("GPU", "missing", f"driver too old: {first}", f"install driver {_MIN_OPEN_DRIVER} or newer")
    return Finding("GPU", "ok", first)


def _docker() -> Finding:
    if not shutil.which("docker"):
        return Finding(
            "Docker",
            "limited",
            "there is no docker command: servers can run as local processes only",
            "install Docker Engine to give each user a container",
        )
    result = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Finding(
            "Docker",
            "limited",
            f"the Docker Engine does not answer ({reason})",
            "start it, and let this user into the group 'docker'; local processes work without",
        )
    return Finding("Docker", "ok", f"Docker Engine {result.stdout.strip()} answers")


def _daemon(run_dir: Path) -> Finding:
    try:
        health = Client(run_dir / ADMIN_SOCKET, timeout=5).request("GET", "/api/health")
    except DaemonError as error:
        if error.status != 503:  # it answered, and said this
            return Finding("daemon", "limited", str(error), "see its log")
        where = run_dir / ADMIN_SOCKET
        way_out = "start it: jupyter vgpu node (--emulate where there is no GPU), or say where it is with --run-dir"
        return Finding("daemon", "missing", f"no node daemon answers at {where}", way_out)
    text = f"vgpud answers: {health['status']}, backend {health['backend']}, slices: {health['tenants']}"
    return Finding("daemon", "ok", text)


def _tier(findings: list[Finding]) -> Finding:
    by_topic = {finding.topic: finding for finding in findings}
    if by_topic["package"].state == "missing":
        return Finding("tier", "missing", "no slice can be started", by_topic["package"].way_out)
    weak = [t for t in ("kernel", "reach") if "shim tier" in by_topic[t].text + by_topic[t].way_out]
    if weak:
        return Finding(
            "tier",
            "limited",
            "slices run in the shim tier: limits hold for programs that use CUDA as usual; one that goes round it is "
            "noticed and charged, not held",
            by_topic[weak[0]].way_out,
        )
    return Finding("tier", "ok", "slices run in the guard tier: limits hold whatever the program does")


def _inside() -> Finding:
    try:
        view = slice_client(5).request("GET", "/api/slice")
    except DaemonError as error:
        return Finding("slice", "missing", str(error), "tell the admins of this hub")
    held = "" if view["tier"] == "none" else f", in tier {view['tier']}"
    return Finding("slice", "ok", f"{view['name']} has {Quota.from_json(view['quota'])} of {view['gpu']['name']}{held}")


def examine(run_dir: Path) -> list[Finding]:
    """Look at everything; in a slice, at the slice: the rest is not its user's."""
    if ENV_SLICE_DIR in os.environ:
        return [_inside()]
    checks: list[Callable[[], Finding]] = [_native, _kernel, _reach, _driver, _docker]
    findings = [check() for check in checks]
    return [_tier(findings), *findings, _daemon(run_dir)]


def report(run_dir: Path, as_json: bool) -> int:
    """Print the findings. Exit code 1 when no slice can run here at all."""
    findings = examine(run_dir)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        marks = {"ok": "[green]ok[/]     ", "limited": "[yellow]limited[/]", "missing": "[red]missing[/]"}
        for finding in findings:
            console.print(f"{marks[finding.state]}  {finding.topic:8} {finding.text}")
            if finding.way_out:
                console.print(f"                   → {finding.way_out}")
    return 1 if findings[0].state == "missing" else 0
