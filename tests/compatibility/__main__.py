"""Run programs natively and in both tiers, and write what came out into docs/compatibility.md.

python tests/compatibility [NAME ...]: those of programs.py and tools.py; all by default. PYTORCH_TESTS names a checkout
of PyTorch's `test` folder of the installed version, for a part of its own tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pynvml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(HERE)]

from programs import ABSENT, PROGRAMS  # noqa: E402
from support.node import Node  # noqa: E402
from tools import tools  # noqa: E402

PAGE = ROOT / "docs" / "compatibility.md"
SECONDS = 300
AT_ONCE = 12
VERSIONS = ("torch", "jax", "cupy-cuda13x", "cupy-cuda12x", "triton", "numba", "numba-cuda", "onnxruntime-gpu", "onnx")


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its last line, or why there is none."""

    code: int
    line: str
    before: list[str] = field(default_factory=list, compare=False)


def _outcome(process: subprocess.Popen[str]) -> Outcome:
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome(-9, f"no end within {SECONDS} s")
    lines = (out if out.strip() else err).strip().splitlines()
    return Outcome(process.returncode, (lines or [""])[-1], lines[-40:-1])


def _in_slice(node: Node, name: str, argv: list[str]) -> Outcome:
    tenant = node.tenant("12G", 50, name)
    try:
        return _outcome(node.spawn(tenant, *argv, stdin=subprocess.DEVNULL))
    finally:
        node.client.request("DELETE", f"/api/tenants/{tenant['id']}")


def _natively(argv: list[str]) -> Outcome:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return _outcome(subprocess.Popen(argv, text=True, **pipes))


def _word(native: Outcome, sliced: Outcome) -> str:
    if native.code == ABSENT:
        return "not on this machine"
    if native.code:
        return "fails natively too" if sliced.code else "**passes**, and natively not"
    if native == sliced:
        return "as natively"
    print(
        "natively:", *native.before, native.line, "in a slice:", *sliced.before, sliced.line, sep="\n", file=sys.stderr
    )
    return f"**differs**: {sliced.code} `{sliced.line[-120:]}`"


def _page(rows: list[tuple[str, Outcome, dict[str, Outcome]]]) -> str:
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    driver = pynvml.nvmlSystemGetDriverVersion()
    versions = []
    for name in VERSIONS:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    lines = [
        "# Compatibility",
        "",
        "Programs that know nothing of slices, run natively and in a slice of 12 GiB and 50 % in both tiers. They pass",
        "where exit code and last line are the same as natively. Made by `make compatibility`; do not edit.",
        "",
        f"{gpu}, driver {driver}, {datetime.now(UTC).date().isoformat()}; {', '.join(versions)}.",
        "",
        "| program | natively | guard tier | shim tier |",
        "|---|---|---|---|",
    ]
    for name, native, tiers in rows:
        said = "absent: " + native.line if native.code == ABSENT else f"{native.code} `{native.line[-80:]}`"
        words = (_word(native, tiers[tier]) for tier in ("guard", "shim"))
        lines.append(f"| {name.replace('_', ' ')} | {said} | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 1 where something differs."""
    with tempfile.TemporaryDirectory() as directory:
        commands: dict[str, list[str]] = {
            name: [sys.executable, str(HERE / "programs.py"), name] for name in PROGRAMS
        } | tools(Path(directory), HERE)
        chosen = sys.argv[1:] or list(commands)
        nodes = {"guard": Node("--NodeApp.core_overcommit=99", "--NodeApp.memory_overcommit=4")}
        nodes["shim"] = Node(
            "--NodeApp.core_overcommit=99", "--NodeApp.memory_overcommit=4", "--NodeApp.force_shim_tier=True"
        )
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # natively it would take what the others need
        jobs: dict[tuple[str, str], Callable[[], Outcome]] = {}
        for name in chosen:
            jobs[name, "native"] = lambda argv=commands[name]: _natively(argv)
            for tier, node in nodes.items():
                jobs[name, tier] = lambda node=node, name=name: _in_slice(node, name, commands[name])
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                outcomes = dict(zip(jobs, pool.map(lambda job: job(), jobs.values()), strict=True))
        finally:
            for node in nodes.values():
                node.stop()
    rows = [(name, outcomes[name, "native"], {tier: outcomes[name, tier] for tier in nodes}) for name in chosen]
    page = _page(rows)
    print(page)
    if not sys.argv[1:]:
        PAGE.write_text(page)
    return 1 if "**differs**" in page else 0


if __name__ == "__main__":
    sys.exit(main())
