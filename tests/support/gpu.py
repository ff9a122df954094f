"""A real GPU for tests and benchmarks: NVML as the witness, and programs built with the machine's own compiler."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pynvml

ROOT = Path(__file__).parents[2]


def _handle() -> object:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(0)


def nvml_process_bytes() -> dict[int, int]:
    """Device memory by process, as the driver says."""
    return {row.pid: row.usedGpuMemory for row in pynvml.nvmlDeviceGetComputeRunningProcesses(_handle())}


def nvml_used() -> int:
    """Bytes in use on the whole GPU."""
    return int(pynvml.nvmlDeviceGetMemoryInfo(_handle()).used)


class Witness(threading.Thread):
    """Samples without a pause how much of the GPU is in use; `most` is the highest above the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base, self.most, self.samples = nvml_used(), 0, 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.is_set():
            self.most = max(self.most, nvml_used() - self.base)
            self.samples += 1

    def __enter__(self) -> Witness:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


def build_attack(target: Path) -> Path:
    """The hostile tenant, static: nothing of CUDA is in it."""
    program = target / "attack"
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "no C compiler"
    subprocess.run(
        [
            *(compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"),
            *("-I", str(ROOT / "shim" / "abi"), "-o", str(program), str(ROOT / "tests" / "gpu" / "attack.c")),
        ],
        check=True,
    )
    return program


def build_cuda(source: str, target: Path) -> Path:
    """A program of ours against the CUDA driver API: benchmarks/gpu/load.c, tests/gpu/names.c."""
    program = target / Path(source).stem
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    subprocess.run([nvcc, "-O2", "-o", str(program), str(ROOT / source), "-lcuda", "-lpthread"], check=True)
    return program
