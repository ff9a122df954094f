"""binder/: its files are carried out in an empty environment, and a server comes up in a slice."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.request
import venv
from pathlib import Path

import pytest
from support.node import wait_until

ROOT = Path(__file__).parents[2]
BINDER = ROOT / "binder"

pytestmark = pytest.mark.timeout(600)

# what conda would bring, beside Python itself: the machine's own
PROGRAMS = {"nodejs": "npm", "cmake": "cmake", "c-compiler": "cc"}


def conda_packages() -> list[str]:
    lines = (BINDER / "environment.yml").read_text().split("dependencies:\n")[1].splitlines()
    return [line.split("-", 1)[1].split("=")[0].strip() for line in lines]


def test_binder_brings_up_a_server_in_a_slice(tmp_path: Path) -> None:
    for package in conda_packages():
        program = PROGRAMS.get(package)
        assert program is None or shutil.which(program), f"{package} of environment.yml is not on this machine"
    checkout = tmp_path / "checkout"
    # as Binder gets it: what git tracks, and nothing that was built here
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        if (ROOT / name).exists():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON", "JUPYTER"))}
    path = [directory for directory in os.environ["PATH"].split(":") if not directory.startswith(str(ROOT))]
    env = kept | {"PATH": f"{environment}/bin:" + ":".join(path), "HOME": str(tmp_path)}
    subprocess.run([checkout / "binder" / "postBuild"], cwd=checkout, env=env, check=True, timeout=500)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = ["--allow-root"] if os.geteuid() == 0 else []
    command = [
        checkout / "binder" / "start",
        "jupyter",
        "lab",
        "--no-browser",
        f"--port={port}",
        "--IdentityProvider.token=t",
        *root,
    ]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=checkout / "demo", env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:

        def view() -> dict[str, object] | None:
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/vgpu/slice?token=t", timeout=5) as answer:
                    loaded: dict[str, object] = json.load(answer)
                    return loaded
            except OSError:
                return None

        seen = wait_until(view, 60, "the server answers")
        assert seen["kind"] == "slice"
        assert seen["quota"] == {"memory": 2 << 30, "cores": 50.0, "policy": "hard"}
        listed = subprocess.run(
            ["jupyter", "labextension", "list"], env=env, capture_output=True, text=True, timeout=60
        )
        plain = re.sub(r"\x1b\[[0-9;]*m", "", listed.stdout + listed.stderr)
        assert "jupyter-vgpu v0.1.0 enabled OK" in plain
    finally:
        server.terminate()
        server.wait(20)
        # binder/start leaves the daemon to the container's end; here it is ended by its number
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is_ours(entry, str(environment)):
                os.kill(int(entry.name), 15)


def _is_ours(entry: Path, environment: str) -> bool:
    try:
        return environment.encode() in (entry / "cmdline").read_bytes()
    except OSError:
        return False
