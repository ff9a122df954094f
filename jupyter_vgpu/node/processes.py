"""Processes by /proc: what they are called, where they come from, and telling them from later ones of their number."""

from __future__ import annotations

import re
from pathlib import Path

# what container engines put into the name of a container's own cgroup
_CONTAINER = re.compile(r"[0-9a-f]{64}")
_LINE_MAX = 64


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


def inside(pid: int) -> int:
    """A process' number in its innermost pid namespace; `pid` itself where it is gone."""
    return (_numbers(pid) or [pid])[-1]


def _numbers(pid: int) -> list[int]:
    """In each of its pid namespaces, the outermost first; none where it is gone."""
    try:
        # a process may have any bytes for its name
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    except OSError:
        pass
    return []


def line_inside(pid: int) -> tuple[int, ...]:
    """A process and its ancestors in the same pid namespace, nearest first, by their numbers in it."""
    own = _numbers(pid)
    found: list[int] = []
    at, numbers = pid, own
    while numbers and len(numbers) == len(own) and len(found) < _LINE_MAX:
        found.append(numbers[-1])
        at = parent(at)
        numbers = _numbers(at) if at else []
    return tuple(found) or (pid,)


def container(pid: int) -> str | None:
    """Its container's own cgroup. None: it is in no container that is known as one."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return None
    return text if _CONTAINER.search(text) else None


def name(pid: int) -> str:
    """As it calls itself."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "a program that has ended"


def variable(pid: int, key: str) -> str | None:
    """From the environment that it was started with. None: not there, or not to be read."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    found = re.search(rb"(?:^|\0)" + re.escape(key.encode()) + rb"=([^\0]*)", content)
    return found[1].decode(errors="replace") if found else None
