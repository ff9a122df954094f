"""The shim, built with sanitizers, under threads that do at once what programs do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.node import Node, wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tier", ["guard", "shim"])
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread,undefined"])
def test_nothing_goes_wrong_under_threads(
    node: Node, shim_node: Node, tmp_path: Path, sanitizers: str, tier: str
) -> None:
    where = node if tier == "guard" else shim_node
    configure = ["cmake", "-S", str(ROOT / "shim"), "-B", str(tmp_path), f"-DVGPU_SANITIZE={sanitizers}"]
    subprocess.run([*configure, "-DBUILD_TESTING=ON"], check=True, capture_output=True)
    build = ["cmake", "--build", str(tmp_path), "--parallel", "2", "--target", "shim_stress"]
    subprocess.run(build, check=True, capture_output=True)
    tenant = where.tenant("1G", 100 if tier == "guard" else 40, sanitizers)
    # the sanitized shim is linked in: the other one must not come before it
    process = where.spawn(tenant, "env", "LD_PRELOAD=", str(tmp_path / "tests" / "shim_stress"), "4")
    err = process.communicate(timeout=90)[1]
    assert process.returncode == 0, err[-3000:]
    assert "WARNING: ThreadSanitizer" not in err
    wait_until(lambda: where.used(sanitizers) == 0, 5, "nothing on the account")
    assert where.show(sanitizers)["refusals"]["count"] > 10
