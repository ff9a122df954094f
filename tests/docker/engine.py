"""A real Docker Engine for the tests, and the image that they run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import docker
import jupyterhub

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BASE_TAG = "vgpu-test-base"
IMAGE_TAG = "vgpu-test-user"
PREFIX = "vgpu-docker-"
_PRINT_VERSION = "import platform; print(platform.python_version())"


def available() -> str | None:
    """None when Docker tests can run here, else why not."""
    if os.geteuid() != 0:
        return "starting a Docker Engine needs root"
    for program in ("dockerd", "debootstrap"):
        if not shutil.which(program):
            return f"{program} is not installed"
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _runs_on(directory: Path) -> Iterator[int]:
    """Processes of the engine there: its own name the directory, its containers have their root in it."""
    mine = str(directory).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        roots = [line for line in _read(entry / "mountinfo").splitlines() if line.split()[4] == b"/"]
        command = _read(entry / "cmdline")
        is_engine = Path(os.fsdecode(command.split(b"\0")[0])).name.startswith(("dockerd", "containerd"))
        if (is_engine and mine in command) or any(mine in root for root in roots):
            yield int(entry.name)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _unmount(directory: Path, *, check: bool = True) -> None:
    """What a killed engine left mounted: layers, and networks, whose addresses the next one gives out again."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in [path for path in reversed(mounted) if path.startswith(f"{directory}/")]:
        subprocess.run(["umount", "--lazy", path], check=check)


def _lock(directory: Path) -> int | None:
    """A file descriptor that says that a run uses the directory, for as long as the run lives; None if one does."""
    held = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def _own_directory() -> tuple[Path, int | None]:
    """A new one, with its lock; what runs that were killed have left is ended first."""
    temporary = Path(tempfile.gettempdir())
    with (temporary / "vgpu-docker.lock").open("w") as one_after_the_other:
        fcntl.flock(one_after_the_other, fcntl.LOCK_EX)
        for directory in temporary.glob(f"{PREFIX}*"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # its run has just ended
                _sweep(directory)
        made = Path(tempfile.mkdtemp(prefix=PREFIX))
        return made, _lock(made)


def _sweep(directory: Path) -> None:
    held = _lock(directory)
    if held is None:
        return
    _kill(_runs_on(directory))
    _unmount(directory, check=False)  # some go with the processes
    shutil.rmtree(directory, ignore_errors=True)
    os.close(held)


class Engine:
    """The machine's own engine where one answers, else one that is started, and stopped again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._directory, self._held = _own_directory()
        self._tag = ""
        if not self._answers():
            self._start()
        self.client = docker.from_env(timeout=120)

    @staticmethod
    def _answers() -> bool:
        try:
            return bool(docker.from_env(timeout=10).ping())
        except docker.errors.DockerException:
            return False

    def _start(self) -> None:
        log = self._directory / "dockerd.log"
        pidfile = self._directory / "docker.pid"
        with log.open("ab") as out:
            # its data under the same tree: /var/lib/docker may be somebody's
            self._process = subprocess.Popen(
                [
                    "dockerd",
                    f"--data-root={self._directory}/data",
                    f"--exec-root={self._directory}/exec",
                    f"--pidfile={pidfile}",
                ],
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"dockerd did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)

    def crash(self) -> None:
        """As when the power goes: the engine, what it runs on, and every container of it end at once.

        Of an engine that was here already only this project's containers end.
        """
        if self._process:
            _kill(_runs_on(self._directory))
            self._process.wait()
            return
        running = self.client.containers.list(filters={"name": "jupyter-"})
        _kill(container.attrs["State"]["Pid"] for container in running)

    def boot(self) -> None:
        """After a crash."""
        if self._process:
            (self._directory / "docker.pid").unlink(missing_ok=True)
            _unmount(self._directory)
            shutil.rmtree(self._directory / "exec")  # it lies in memory where an engine boots
            self._start()
            self.client.close()
            self.client = docker.from_env(timeout=120)

    def stop(self) -> None:
        if self._tag:
            self.client.images.remove(self._tag, force=True)
        self.client.close()
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)

    def image(self) -> str:
        """The user's image, with the package as it is now; built once for all tests."""
        if self._tag:
            return self._tag
        wheel = self._build_wheel()
        digest = hashlib.sha256(wheel.read_bytes() + (HERE / "Dockerfile").read_bytes()).hexdigest()[:12]
        self._tag = f"{IMAGE_TAG}:{digest}"
        self._build(self._tag, wheel)
        return self._tag

    def _build_wheel(self) -> Path:
        target = self._directory / "wheel"
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", target, ROOT],
            check=True,
            capture_output=True,
        )
        return next(target.glob("*.whl"))

    def _build(self, tag: str, wheel: Path) -> None:
        if not self.client.images.list(BASE_TAG):
            self._import_base()
        context = self._directory / "context"
        wheels = context / "wheels"
        wheels.mkdir(parents=True)
        # resolved for the image's Python, which is not the one that runs the tests
        version = self.client.containers.run(BASE_TAG, ["python3", "-c", _PRINT_VERSION], remove=True).decode().strip()
        # what runs in a server is as old as its hub
        packages = [
            f"jupyterhub=={jupyterhub.__version__}",
            "jupyterlab",
            "cuda-bindings",
            "cuda-core",
            "nvidia-cuda-nvrtc",
            "numpy",
        ]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--only-binary=:all:",
            "--python-version",
            version,
        ]
        subprocess.run([*command, "-d", str(wheels), str(wheel), *packages], check=True, capture_output=True)
        shutil.copy(HERE / "Dockerfile", context)
        self.client.images.build(path=str(context), tag=tag, buildargs={"BASE": BASE_TAG}, rm=True)
        shutil.rmtree(context)

    def _import_base(self) -> None:
        """Debian with Python, as the base: there is no registry to pull one from."""
        root = self._directory / "base"
        include = "python3,python3-venv,ca-certificates"
        release = next(
            line.split("=")[1].strip()
            for line in Path("/etc/os-release").read_text().splitlines()
            if line.startswith("VERSION_CODENAME=")
        )
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={include}", release, root], check=True, capture_output=True
        )
        archive = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["docker", "import", "-", BASE_TAG], stdin=archive.stdout, check=True, capture_output=True)
        if archive.wait() != 0:
            raise RuntimeError("tar of the base image failed")
        shutil.rmtree(root, ignore_errors=True)
