"""Processes by /proc: told from others that have their number later, and where they come from."""

from __future__ import annotations

import re
from pathlib import Path

# what container engines put into the name of a container's own cgroup
_CONTAINER = re.compile(r"[0-9a-f]{64}")


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat behind the name, which may hold anything: state, parent, group, session, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def parent(pid: int) -> int:
    """0: it has none, or is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def started(pid: int) -> int:
    """Clock ticks since boot; 0: there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def container(pid: int) -> str | None:
    """Its container's own cgroup. None: it is in no container that is known as one."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return None
    return text if _CONTAINER.search(text) else None


def variable(pid: int, name: str) -> str | None:
    """From the environment that it was started with. None: not there, or not to be read."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    found = re.search(rb"(?:^|\0)" + re.escape(name.encode()) + rb"=([^\0]*)", content)
    return found[1].decode(errors="replace") if found else None
