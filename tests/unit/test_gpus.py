"""Which GPUs of a node are shared."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from jupyter_vgpu.node import gpus as gpu_module
from jupyter_vgpu.node.gpus import NoGpu, discover, share_by_mps
from jupyter_vgpu.node.samples import Samples
from jupyter_vgpu.quotas import QuotaError


class FakeNvml:
    """What NVML of a real driver says, as NVIDIA documents it: no GPU here is in MIG mode."""

    def __init__(self) -> None:
        self.modes: list[int | None] = []  # of each GPU; None: it knows of no MIG
        self.parts: dict[int, dict[int, tuple[str, int]]] = {}  # by GPU and place: its profile and compute slices

    def mode(self, index: int) -> list[int]:
        if (mode := self.modes[index]) is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [mode, 0]

    def part(self, index: int, at: int) -> tuple[int, int]:
        if at not in self.parts.get(index, {}):  # drivers say either
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT if at % 2 else pynvml.NVML_ERROR_NOT_FOUND)
        return index, at

    def memory(self, handle: Any, version: int) -> SimpleNamespace:
        if isinstance(handle, tuple):
            return SimpleNamespace(total=10 << 30, reserved=1 << 20)
        return SimpleNamespace(total=80 << 30, reserved=1 << 30)

    def name(self, handle: Any) -> str:
        return f"NVIDIA A100 MIG {self.parts[handle[0]][handle[1]][0]}" if isinstance(handle, tuple) else "NVIDIA A100"

    def attributes(self, handle: Any) -> SimpleNamespace:
        if self.parts[handle[0]][handle[1]][1] == 0:  # it is gone by now
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)
        return SimpleNamespace(computeInstanceSliceCount=self.parts[handle[0]][handle[1]][1])

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self.modes),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMigMode": self.mode,
            "nvmlDeviceGetMaxMigDeviceCount": lambda index: 7,
            "nvmlDeviceGetMigDeviceHandleByIndex": self.part,
            "nvmlDeviceGetGpuInstanceId": lambda handle: 7 + handle[1],
            "nvmlDeviceGetComputeInstanceId": lambda handle: 0,
            "nvmlDeviceGetAttributes": self.attributes,
            "nvmlDeviceGetMemoryInfo": self.memory,
            "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(busId=f"0000:0{handle}:00.0"),
            "nvmlDeviceGetMinorNumber": lambda handle: 10 + handle,
            "nvmlDeviceGetUUID": lambda h: f"MIG-{h[0]}-{h[1]}" if isinstance(h, tuple) else f"GPU-{h}",
            "nvmlDeviceGetName": self.name,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, answer)
        monkeypatch.delenv("VGPU_EMULATED_DIR", raising=False)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    fake.use(monkeypatch)
    return fake


@pytest.fixture
def capabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_module, "_CAPABILITIES", tmp_path)
    monkeypatch.setattr(gpu_module, "_CAPABILITY_DEVICES", tmp_path)
    return tmp_path


def allow(capabilities: Path, instance: str, minor: int) -> None:
    (capabilities / instance).mkdir(parents=True, exist_ok=True)
    said = f"DeviceFileMinor: {minor}\nDeviceFileMode: 256\nDeviceFileModify: 1\n"
    (capabilities / instance / "access").write_text(said)
    (capabilities / f"nvidia-cap{minor}").touch()


def test_parts_of_a_gpu_in_mig_mode_are_gpus_after_the_whole_ones(nvml: FakeNvml, capabilities: Path) -> None:
    nvml.modes = [1, 0, None]
    nvml.parts = {0: {0: ("3g.40gb", 3), 2: ("1g.10gb", 1)}}
    for instance, minor in (("gi7", 66), ("gi7/ci0", 67), ("gi9", 84), ("gi9/ci0", 85)):
        allow(capabilities, f"gpu10/mig/{instance}", minor)
    first, second, large, small = discover()
    assert [(gpu.index, gpu.uuid, gpu.mig, gpu.cores) for gpu in (first, second, large, small)] == [
        (1, "GPU-1", False, 100),
        (2, "GPU-2", False, 100),
        (3, "MIG-0-0", True, 42),
        (4, "MIG-0-2", True, 14),
    ]
    assert (small.memory, small.names) == ((10 << 30) - (1 << 20), ("NVIDIA A100 MIG 1g.10gb", "MIG"))
    # its own capabilities, and the node of the GPU that it is a part of
    assert [path for path in large.devices if "uvm" not in path and "ctl" not in path] == [
        "/dev/nvidia10",
        f"{capabilities}/nvidia-cap66",
        f"{capabilities}/nvidia-cap67",
    ]
    assert {f"{capabilities}/nvidia-cap84", f"{capabilities}/nvidia-cap85"} <= set(small.devices)


def test_a_part_whose_file_nobody_names_is_left_out(
    nvml: FakeNvml, capabilities: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nvml.modes, nvml.parts = [1], {0: {0: ("1g.10gb", 1), 1: ("1g.10gb", 1), 2: ("1g.10gb", 0)}}
    allow(capabilities, "gpu10/mig/gi8", 5)
    allow(capabilities, "gpu10/mig/gi8/ci0", 6)
    with caplog.at_level(logging.WARNING):
        assert [(gpu.index, gpu.uuid) for gpu in discover()] == [(1, "MIG-0-1")]
    assert "gpu10/mig/gi7/access names no file" in caplog.text
    assert "a part of GPU 0 is left out: Unknown Error" in caplog.text
    (capabilities / "nvidia-cap6").unlink()
    with pytest.raises(NoGpu, match="all are in MIG mode, and have no parts that can be used"):
        discover()
    assert "nvidia-cap6 is not there: 'nvidia-modprobe -f" in caplog.text
    (capabilities / "gpu10/mig/gi8/access").write_text("DeviceFileMode: 256\n")
    with pytest.raises(NoGpu, match="all are in MIG mode, and have no parts that can be used"):
        discover()


def test_mps_is_not_for_parts(nvml: FakeNvml, capabilities: Path) -> None:
    nvml.modes, nvml.parts = [0, 1], {1: {0: ("1g.10gb", 1)}}
    allow(capabilities, "gpu11/mig/gi7", 1)
    allow(capabilities, "gpu11/mig/gi7/ci0", 2)
    assert [gpu.mps for gpu in share_by_mps(discover(), ["0"])] == [True, False]
    for name in ("2", "MIG-1-0"):
        with pytest.raises(QuotaError, match=r"names GPU 2, which is a part of one \(MIG\)"):
            share_by_mps(discover(), [name])


def test_a_divided_gpu_without_parts_is_named(nvml: FakeNvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml.modes = [1, 0]
    with caplog.at_level(logging.WARNING):
        assert [gpu.index for gpu in discover()] == [1]
    assert "GPU 0 is in MIG mode and has no parts to share: make some with 'nvidia-smi mig -i 0 -cgi" in caplog.text
    assert "'nvidia-smi -i 0 -mig 0'" in caplog.text


def test_the_guard_is_asked_of_whole_gpus_by_its_own_count_and_nvml_of_parts(
    nvml: FakeNvml, capabilities: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.modes, nvml.parts = [1, 0], {0: {0: ("1g.10gb", 1)}}
    allow(capabilities, "gpu10/mig/gi7", 1)
    allow(capabilities, "gpu10/mig/gi7/ci0", 2)
    monkeypatch.setattr(gpu_module, "utilisation", lambda gpu, since: {77: 30} if gpu.uuid == "GPU-1" else {})
    monkeypatch.setattr(gpu_module, "processes", lambda gpu: {77: 3} if gpu.uuid == "GPU-1" else {77: 4, 78: 9})
    guard: Any = SimpleNamespace(memory_of=lambda at, pid: {(0, 77): 5}[at, pid], numbers={"GPU-1": 0, "MIG-0-0": 1})
    in_shim: Any = SimpleNamespace(shim=True)
    samples = Samples(discover(), guard, {}, {"a": in_shim}, lambda tenant: Path(tenant.id))
    samples.take(0)
    assert (samples._memory_of(77), samples._memory_of(78)) == (5 + 4, 9)
    tenant: Any = SimpleNamespace(gpu="GPU-1")
    assert samples.busy(tenant) == {77: 30}
