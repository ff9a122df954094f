"""Which GPUs of a node are shared."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from jupyter_vgpu.node import gpus as gpu_module
from jupyter_vgpu.node.gpus import NoGpu, discover
from jupyter_vgpu.node.samples import Samples


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """What NVML says of each GPU's MIG mode; None: it knows of none."""
    given: list[int | None] = []

    def mig_mode(index: int) -> list[int | None]:
        if given[index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [given[index], 0]

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(given),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMigMode": mig_mode,
        "nvmlDeviceGetMemoryInfo": lambda handle, version: SimpleNamespace(total=80 << 30, reserved=1 << 30),
        "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(busId=f"0000:0{handle}:00.0"),
        "nvmlDeviceGetMinorNumber": lambda handle: handle,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetName": lambda handle: "NVIDIA A100",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.delenv("VGPU_EMULATED_DIR", raising=False)
    return given


def test_a_gpu_in_mig_mode_is_left_out_and_named(modes: list[int | None], caplog: pytest.LogCaptureFixture) -> None:
    modes += [1, 0, None]
    with caplog.at_level(logging.WARNING):
        assert [gpu.index for gpu in discover()] == [1, 2]
    assert "GPU 0 is left out" in caplog.text
    assert "nvidia-smi -i 0 -mig 0" in caplog.text


def test_a_node_of_gpus_in_mig_mode_says_so(modes: list[int | None]) -> None:
    modes += [1, 1]
    with pytest.raises(NoGpu, match=r"GPU 0,1 is left out: in MIG mode.*-i 0,1 -mig 0"):
        discover()


def test_the_guard_is_asked_by_its_own_count_where_a_gpu_is_left_out(
    modes: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes += [1, 0]
    monkeypatch.setattr(gpu_module, "utilisation", lambda index, since: {77: 30} if index == 1 else {})
    monkeypatch.setattr(gpu_module, "processes", lambda index: {77} if index == 1 else set())
    guard: Any = SimpleNamespace(memory_of=lambda at, pid: {(0, 77): 5}[at, pid])
    in_shim: Any = SimpleNamespace(shim=True)
    samples = Samples(discover(), guard, {}, {"a": in_shim}, lambda tenant: Path(tenant.id))
    samples.take(0)
    assert samples._memory_of(77) == 5
    tenant: Any = SimpleNamespace(gpu="GPU-1")
    assert samples.busy(tenant) == {77: 30}
