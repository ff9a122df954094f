"""The shim, built with sanitizers, under threads that do at once what programs do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.node import Node, wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread,undefined"])
def test_nothing_goes_wrong_under_threads(node: Node, tmp_path: Path, sanitizers: str) -> None:
    configure = ["cmake", "-S", str(ROOT / "shim"), "-B", str(tmp_path), f"-DVGPU_SANITIZE={sanitizers}"]
    subprocess.run([*configure, "-DBUILD_TESTING=ON"], check=True, capture_output=True)
    build = ["cmake", "--build", str(tmp_path), "--parallel", "2", "--target", "shim_stress"]
    subprocess.run(build, check=True, capture_output=True)
    tenant = node.tenant("1G", 100)
    # the sanitized shim is linked in: the other one must not come before it
    process = node.spawn(tenant, "env", "LD_PRELOAD=", str(tmp_path / "tests" / "shim_stress"), "4")
    err = process.communicate(timeout=90)[1]
    assert process.returncode == 0, err[-3000:]
    assert "WARNING: ThreadSanitizer" not in err
    wait_until(lambda: node.used("tenant") == 0, 5, "nothing on the account")
    assert node.show("tenant")["refusals"]["count"] > 10
