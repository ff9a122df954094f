"""A process on the hub's own machine for each user, with a slice of a GPU."""

from __future__ import annotations

import os
import pwd
from typing import Any

from jupyterhub.spawner import LocalProcessSpawner, SimpleLocalProcessSpawner

from .mixin import Json, VGPUMixin


class _PrefixedProcess(LocalProcessSpawner):
    """Stands between mixin and base: puts the launcher before the command for as long as Popen takes.

    The launcher execs, so pid and signals are the server's own.
    """

    async def start(self) -> Any:
        configured: list[str] = getattr(self, "cmd")  # noqa: B009 (its type is traitlets' secret)
        self.cmd = [*self.slice_prefix(), *configured]
        try:
            return await super().start()
        finally:
            self.cmd = configured


class VGPULocalProcessSpawner(VGPUMixin, _PrefixedProcess):
    """LocalProcessSpawner, a system user each, whose servers get a slice of a GPU."""

    def slice_owner(self) -> Json:
        """Only this user may enter the slice, where the daemon can see to it."""
        return {"owner": pwd.getpwnam(self.user.name).pw_uid} if os.geteuid() == 0 else {}


class VGPUSimpleLocalProcessSpawner(VGPUMixin, _PrefixedProcess, SimpleLocalProcessSpawner):
    """SimpleLocalProcessSpawner for demos and tests: all servers run as the hub's own user."""
