"""A part of a GPU in MIG mode, emulated, in a container: the part's file is all that it has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import Node

for folder in ("hub", "docker"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
from engine import Engine  # noqa: E402
from hub import Hub  # noqa: E402
from test_docker import config, stop  # noqa: E402

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

SLICES = """
c.VGPUMixin.gpu_slices = [{"memory": "1G", "cores": 14, "model": "MIG"}]
"""
LOOK = """
import ctypes, os
from cuda.bindings import driver
from cuda.core import Device
Device(0).set_current()
taken = 0
while driver.cuMemAlloc(32 << 20)[0] == driver.CUresult.CUDA_SUCCESS: taken += 1
nvml, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
memory, uuid = (ctypes.c_ulonglong * 3)(), ctypes.create_string_buffer(96)
assert not nvml.nvmlInit_v2() and not nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle))
assert not nvml.nvmlDeviceGetMemoryInfo(handle, memory) and not nvml.nvmlDeviceGetUUID(handle, uuid, 96)
print(taken, memory[0] >> 20, memory[2] >> 20, uuid.value.decode(), os.listdir("/run/vgpu/emulated"))
"""


@pytest.fixture
def hub(divided: Node, engine: Engine) -> Iterator[Hub]:
    made = Hub(divided, config(divided, engine) + SLICES)
    yield made
    stop(made, engine)


def test_the_part_is_the_containers_gpu(hub: Hub, divided: Node) -> None:
    alice = hub.user("alice")
    alice.spawn("1GiB-14-MIG", 180)
    uuid = divided.show("alice/")["gpu"]["uuid"]
    kernel = alice.open_notebook("work.ipynb")["kernel"]["id"]
    assert alice.execute(kernel, LOOK) == f"30 1024 1024 {uuid} ['gpu1.mig1']\n"
    view = alice.get("vgpu/slice")
    assert (view["tier"], view["gpu"]["mig"], view["usage"]["memory"]) == ("shim", True, 1 << 30)
    alice.stop()
