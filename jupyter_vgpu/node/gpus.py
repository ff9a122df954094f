"""The node's GPUs, through NVML: the real library, or the emulated one where the daemon is told to emulate."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pynvml

from ..native import native_dir
from ..quotas import MPS, QuotaError, is_mps, parse_model

log = logging.getLogger(__name__)

ENV_EMULATED_DIR = "VGPU_EMULATED_DIR"
ENV_EMULATED_MEMORY = "VGPU_EMULATED_MEMORY"
ENV_EMULATED_GPUS = "VGPU_EMULATED_GPUS"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. memory: bytes that programs can have. where: what the guard opens. mps: slices share it by MPS."""

    index: int
    uuid: str
    name: str
    memory: int
    where: str
    emulated: bool
    devices: tuple[str, ...]
    labels: tuple[str, ...] = ()
    mps: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What a slice may ask for it by."""
        return (self.name, *self.labels)


class NoGpu(RuntimeError):
    """There is none; the message says why and what to do."""


def emulate(directory: Path, memory: int, count: int) -> None:
    """Make this process, and what it starts, use emulated GPUs whose device files are in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    # a guard that runs is known by the names of its GPUs
    os.environ[ENV_EMULATED_DIR] = str(directory.resolve())
    os.environ[ENV_EMULATED_MEMORY] = str(memory)
    os.environ[ENV_EMULATED_GPUS] = str(count)
    # the name is loaded now, so NVML's own lookup of it finds this one
    ctypes.CDLL(str(native_dir() / "emulator" / "libnvidia-ml.so.1"))


def is_emulating() -> bool:
    return ENV_EMULATED_DIR in os.environ


def discover() -> list[Gpu]:
    """The GPUs of this node, lowest index first, without those in MIG mode. Raises NoGpu."""
    try:
        pynvml.nvmlInit()
        divided = [index for index in range(pynvml.nvmlDeviceGetCount()) if _is_divided(index)]
        gpus = [_describe(index) for index in range(pynvml.nvmlDeviceGetCount()) if index not in divided]
    except pynvml.NVMLError as error:
        raise NoGpu(
            f"no NVIDIA GPU to share here ({error}): install the driver, or try an emulated one "
            "with 'jupyter vgpu node --emulate'"
        ) from error
    if divided:
        which = ",".join(map(str, divided))
        why = (
            f"GPU {which} is left out: in MIG mode a GPU gives programs fixed parts of itself, and slices can't be "
            f"held. 'nvidia-smi -i {which} -mig 0' switches it off; then start this daemon again, without GPU servers"
        )
        if not gpus:
            raise NoGpu(f"no GPU to share here: {why}")
        log.warning(why)
    if not gpus:
        raise NoGpu("the NVIDIA driver reports no GPU: try an emulated one with 'jupyter vgpu node --emulate'")
    return gpus


def _is_divided(index: int) -> bool:
    """Is it in MIG mode?"""
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByIndex(index))
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False  # a GPU, or a driver, without it
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def label(gpus: Iterable[Gpu], given: Mapping[str, Sequence[str]]) -> list[Gpu]:
    """The same GPUs with the admin's labels, by index or UUID. Raises QuotaError."""
    every, labels = list(gpus), {str(key): names for key, names in given.items()}
    _check_known(every, labels, "gpu_labels")
    for key, names in labels.items():
        if not isinstance(names, list | tuple) or not all(parse_model(name) for name in names):
            raise QuotaError(f"gpu_labels[{key!r}]={names!r} is no list of labels: give one such as ['teaching']")
        if any(is_mps(name) for name in names):
            raise QuotaError(f"gpu_labels[{key!r}]={names!r} has {MPS!r}, which mps_gpus gives: take another name")
    return [replace(gpu, labels=(*labels.get(str(gpu.index), ()), *labels.get(gpu.uuid, ()))) for gpu in every]


def share_by_mps(gpus: Iterable[Gpu], given: Sequence[str]) -> list[Gpu]:
    """The same GPUs; those of `given`, by index or UUID, are shared by MPS. Raises QuotaError."""
    every, keys = list(gpus), {str(key) for key in given}
    _check_known(every, keys, "mps_gpus")
    if keys and any(gpu.emulated for gpu in every):
        raise QuotaError("mps_gpus needs NVIDIA's Multi-Process Service, and emulated GPUs have none: leave one out")
    shared = {gpu.uuid for gpu in every if {str(gpu.index), gpu.uuid} & keys}
    return [replace(gpu, mps=True, labels=(MPS, *gpu.labels)) if gpu.uuid in shared else gpu for gpu in every]


def _check_known(gpus: Sequence[Gpu], keys: Iterable[str], trait: str) -> None:
    known = {key for gpu in gpus for key in (str(gpu.index), gpu.uuid)}
    for key in keys:
        if key not in known:
            has = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus)
            raise QuotaError(f"{trait} names GPU {key!r}, which this node does not share; it shares: {has}")


def _describe(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    emulated = is_emulating()
    if emulated:
        where = f"{os.environ[ENV_EMULATED_DIR]}/gpu{index}"
        devices: tuple[str, ...] = ()
    else:
        where = pynvml.nvmlDeviceGetPciInfo(handle).busId
        minor = pynvml.nvmlDeviceGetMinorNumber(handle)
        shared = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
        devices = (f"/dev/nvidia{minor}", *(path for path in shared if os.path.exists(path)))
    return Gpu(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory=int(memory.total - memory.reserved),
        where=where,
        emulated=emulated,
        devices=devices,
    )


def processes(index: int) -> set[int]:
    """Who is on the GPU, for compute or for graphics. Empty where the driver does not tell."""
    found: set[int] = set()
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        with contextlib.suppress(pynvml.NVMLError):
            found |= {int(row.pid) for row in ask(pynvml.nvmlDeviceGetHandleByIndex(index))}
    return found


def mps_clients(index: int) -> set[int] | None:
    """Who is on the GPU by way of MPS; None: the driver does not tell."""
    try:
        rows = pynvml.nvmlDeviceGetMPSComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError:
        return None
    return {int(row.pid) for row in rows}


def utilisation(index: int, since_us: int) -> dict[int, int]:
    """Percent of the GPU's compute by process since a time. Empty where the driver does not tell."""
    try:
        samples = pynvml.nvmlDeviceGetProcessUtilization(pynvml.nvmlDeviceGetHandleByIndex(index), since_us)
    except pynvml.NVMLError:
        return {}
    latest = {sample.pid: sample for sample in sorted(samples, key=lambda sample: int(sample.timeStamp))}
    return {int(pid): int(sample.smUtil) for pid, sample in latest.items() if sample.timeStamp > since_us}
