"""A PostgreSQL server of a test's own, on a Unix socket in a directory that goes with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote


def find_programs() -> Path | None:
    """Where initdb and pg_ctl are: Debian does not put them on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class Postgres:
    """Runs as the user `postgres` where the test is root, for it refuses to be root."""

    def __init__(self) -> None:
        programs = find_programs()
        assert programs
        self._programs = programs
        self._root = Path(tempfile.mkdtemp(prefix="vgpu-pg-"))
        if os.geteuid() == 0:
            shutil.chown(self._root, "postgres", "postgres")
        self._run("initdb", "-A", "trust", "-U", "vgpu", "-D", str(self._root / "data"))
        self._count = 0
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self._root}"
        self._run("pg_ctl", "-w", "-D", str(self._root / "data"), "-o", options, "-l", str(self._root / "log"), "start")

    def kill(self) -> None:
        """As a machine that is switched off."""
        self._run("pg_ctl", "-w", "-m", "immediate", "-D", str(self._root / "data"), "stop")

    def _run(self, program: str, *arguments: str) -> None:
        runuser = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        subprocess.run(
            [*runuser, str(self._programs / program), *arguments],
            check=True,
            cwd=self._root,
            stdout=subprocess.DEVNULL,
        )

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._count += 1
        name = f"vgpu{self._count}"
        self._run("createdb", "-h", str(self._root), "-U", "vgpu", name)
        return f"postgresql+psycopg://vgpu@/{name}?host={quote(str(self._root), safe='')}"

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._root, ignore_errors=True)
