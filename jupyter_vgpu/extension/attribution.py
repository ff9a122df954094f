"""Which notebook holds what: from processes to kernels, consoles and terminals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["notebook", "console", "terminal", "kernel", "other"]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Owner:
    """What a process belongs to. path: of the notebook; id: of the kernel, or the terminal's name."""

    kind: Kind
    name: str
    path: str | None = None
    id: str | None = None


def owners_of_kernels(kernel_pids: Mapping[str, int], sessions: Iterable[Mapping[str, Any]]) -> dict[int, Owner]:
    """Owners by the pid of their kernel. sessions: as Jupyter's session manager lists them.

    A kernel that a console shares with a notebook is the notebook's.
    """
    ordered = sorted(sessions, key=lambda session: session["type"] == "notebook")  # the last one counts
    by_kernel = {session["kernel"]["id"]: session for session in ordered if session.get("kernel")}
    return {pid: _owner_of_kernel(kernel, by_kernel.get(kernel)) for kernel, pid in kernel_pids.items()}


def _owner_of_kernel(kernel: str, session: Mapping[str, Any] | None) -> Owner:
    if session is None:
        return Owner("kernel", "kernel without a notebook", None, kernel)
    if session["type"] == "console":
        return Owner("console", session["name"] or session["path"], session["path"], kernel)
    return Owner("notebook", session["path"].rsplit("/", 1)[-1], session["path"], kernel)


def attribute(
    processes: Sequence[Mapping[str, Any]], owners: Mapping[int, Owner], parent: Callable[[int], int | None]
) -> list[Json]:
    """Sum the processes up by owner, largest first; kernels that use no GPU are there too, with nothing.

    A process belongs to the nearest of its ancestors that is a kernel or a terminal; without one it stands
    for itself. parent(pid) is None at the end of the line.
    """
    rows = {owner: _row(owner) for owner in owners.values() if owner.kind != "terminal"}
    for process in processes:
        owner = owner_of(process["pid_in_slice"], owners, parent) or Owner("other", process["name"])
        row = rows.setdefault(owner, _row(owner))
        row["memory"] += process["memory"]
        row["cores"] += process["cores"]
        row["busy"] |= process["busy"]
        row["last_active"] = max(row["last_active"] or 0, process["last_active"] or 0) or None
        row["pids"].append(process["pid_in_slice"])
    return sorted(rows.values(), key=lambda row: (-row["memory"], row["name"]))


def _row(owner: Owner) -> Json:
    return {**asdict(owner), "memory": 0, "cores": 0, "busy": False, "last_active": None, "pids": []}


def owner_of(pid: int, owners: Mapping[int, Owner], parent: Callable[[int], int | None]) -> Owner | None:
    """The nearest of a process and its ancestors that owns something."""
    seen: set[int] = set()
    at: int | None = pid
    while at and at not in seen:
        if at in owners:
            return owners[at]
        seen.add(at)
        at = parent(at)
    return None
