"""Programs that are not Python's: CUDA's tools, and what nvcc builds."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Classes of PyTorch's own test_cuda.py. Left out: what wants more memory than the slice has, and what asks the card's
# temperature, power and clock, which a slice does not tell; and what counts the whole card's free bytes, which fails
# natively while others are at work on it.
PYTORCH_CLASSES = ("TestCuda", "TestCudaMallocAsync", "TestBlockStateAbsorption", "TestMemPool", "TestCudaAutocast")
PYTORCH_LEFT_OUT = (
    "large or huge or temperature or power_draw or clock_speed or snapshot or plots or viz or workspace_memory"
)

# The last line counts what passed and what did not, and sums up the names of both.
_BY_NAME = """cd {0}; names=$({1} 2>&1 | grep -E '^(PASSED|FAILED|ERROR) ' | sed 's/ - .*//' | sort)
echo "$names" | grep -v ^PASSED
echo "$(echo "$names" | grep -c ^PASSED) of $(echo "$names" | wc -l) passed, names $(echo "$names" | cksum | cut -d' ' -f1)"
"""


def tools(directory: Path, here: Path) -> dict[str, list[str]]:
    """name: command. What can't be had here is left out, aloud."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    commands: dict[str, list[str]] = {}
    for kind in ("static", "shared"):
        program = directory / f"runtime_{kind}"
        built = subprocess.run(
            [nvcc, f"-cudart={kind}", "-o", str(program), str(here / "runtime.cu")], capture_output=True, text=True
        )
        if built.returncode:
            print(f"nvcc -cudart={kind}: {built.stderr.strip()[-300:]}", file=sys.stderr)
            continue
        commands[f"nvcc_{kind}_runtime"] = [str(program)]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer and "nvcc_static_runtime" in commands:
        commands["compute_sanitizer"] = ["sh", "-c", f"{sanitizer} {directory}/runtime_static | tail -1"]
    if shutil.which("nvidia-smi"):
        name = "--query-gpu=count,name,driver_version"
        commands["nvidia_smi"] = ["nvidia-smi", name, "--format=csv,noheader"]
        commands["nvidia_smi_q"] = ["sh", "-c", "nvidia-smi -q | grep -c Attached"]
        commands["nvidia_smi_pmon"] = ["sh", "-c", "nvidia-smi pmon -c 1 | head -1"]
    if numba := importlib.util.find_spec("numba_cuda"):
        tests = Path(numba.submodule_search_locations[0]) / "numba" / "cuda" / "tests" / "cudadrv"
        # one that takes more managed memory than the card has can stop the card for everybody
        run = f"{sys.executable} -m pytest -q -p no:cacheprovider -k 'not oversubscribe' {tests}"
        commands["numba_own_driver_tests"] = ["sh", "-c", f"{run} 2>&1 | tail -1 | sed 's/ in .*//'"]
    if tests := os.environ.get("PYTORCH_TESTS"):
        for name in PYTORCH_CLASSES:
            run = f"{sys.executable} -m pytest -q -rpfE -p no:cacheprovider --timeout 120 test_cuda.py::{name}"
            commands[f"pytorch_own_{name}"] = [
                "sh",
                "-c",
                _BY_NAME.format(tests, f"{run} -k 'not ({PYTORCH_LEFT_OUT})'"),
            ]
    return commands
