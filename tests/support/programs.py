"""C programs of the tests, built with the machine's own compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(target: Path, source: Path, *options: str) -> Path:
    """May include the shim's tables of symbols."""
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "shim" / "hook"), "-o", str(target)]
    subprocess.run([*command, str(source), *options, "-ldl"], check=True)
    return target
