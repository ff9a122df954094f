"""The node's GPUs, through NVML: the real library, or the emulated one where the daemon is told to emulate."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from ..native import native_dir
from ..quotas import MIG, MPS, QuotaError, is_mps, names_part, parse_model

log = logging.getLogger(__name__)

ENV_EMULATED_DIR = "VGPU_EMULATED_DIR"
ENV_EMULATED_MEMORY = "VGPU_EMULATED_MEMORY"
ENV_EMULATED_GPUS = "VGPU_EMULATED_GPUS"
ENV_EMULATED_MIG = "VGPU_EMULATED_MIG"
_CAPABILITIES, _CAPABILITY_DEVICES = Path("/proc/driver/nvidia/capabilities"), Path("/dev/nvidia-caps")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one part of a GPU in MIG mode.

    memory: bytes that programs can have. where: what the guard opens; a part it does not guard. mps: slices share it by
    MPS. cores: how much of the GPU it is, in percent.
    """

    index: int
    uuid: str
    name: str
    memory: int
    where: str
    emulated: bool
    devices: tuple[str, ...]
    labels: tuple[str, ...] = ()
    mps: bool = False
    cores: float = 100.0

    @property
    def mig(self) -> bool:
        """It is a part of a GPU, which the hardware holds."""
        return MIG in self.labels

    @property
    def names(self) -> tuple[str, ...]:
        """What a slice may ask for it by."""
        return (self.name, *self.labels)


class NoGpu(RuntimeError):
    """There is none; the message says why and what to do."""


def emulate(directory: Path, memory: int, count: int, parts: int) -> None:
    """Make this process, and what it starts, use emulated GPUs whose device files are in `directory`.

    parts: into so many the last of them is divided, as by MIG.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # a guard that runs is known by the names of its GPUs
    os.environ[ENV_EMULATED_DIR] = str(directory.resolve())
    os.environ[ENV_EMULATED_MEMORY] = str(memory)
    os.environ[ENV_EMULATED_GPUS] = str(count)
    os.environ[ENV_EMULATED_MIG] = str(parts)
    # the name is loaded now, so NVML's own lookup of it finds this one
    ctypes.CDLL(str(native_dir() / "emulator" / "libnvidia-ml.so.1"))


def is_emulating() -> bool:
    return ENV_EMULATED_DIR in os.environ


def discover() -> list[Gpu]:
    """The GPUs of this node, lowest index first, then the parts of those in MIG mode. Raises NoGpu."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        divided = [index for index in range(count) if _is_divided(index)]
        gpus = [_describe(index) for index in range(count) if index not in divided]
        for index in divided:
            gpus += _parts(index, count + len([gpu for gpu in gpus if gpu.mig]))
    except pynvml.NVMLError as error:
        raise NoGpu(
            f"no NVIDIA GPU to share here ({error}): install the driver, or try an emulated one "
            "with 'jupyter vgpu node --emulate'"
        ) from error
    if not gpus and divided:
        raise NoGpu("no GPU to share here: all are in MIG mode, and have no parts that can be used; see above")
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


def _parts(parent_index: int, first: int) -> list[Gpu]:
    """Of a GPU in MIG mode. first: what the first of them has as its index."""
    parent = pynvml.nvmlDeviceGetHandleByIndex(parent_index)
    found: list[Gpu] = []
    for at in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
        try:
            part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, at)
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):  # there are fewer than there may be
            continue
        try:
            found.append(_describe_part(first + len(found), parent_index, part))
        except (pynvml.NVMLError, _NoCapabilityError) as error:  # such as one that is gone by now
            log.warning("a part of GPU %d is left out: %s", parent_index, error)
    if not found:
        log.warning(
            "GPU %d is in MIG mode and has no parts to share: make some with 'nvidia-smi mig -i %d -cgi PROFILE -C' or "
            "switch the mode off with 'nvidia-smi -i %d -mig 0'; then start this daemon again",
            *[parent_index] * 3,
        )
    return found


def label(gpus: Iterable[Gpu], given: Mapping[str, Sequence[str]]) -> list[Gpu]:
    """The same GPUs with the admin's labels, by index or UUID. Raises QuotaError."""
    every, labels = list(gpus), {str(key): names for key, names in given.items()}
    _check_known(every, labels, "gpu_labels")
    for key, names in labels.items():
        if not isinstance(names, list | tuple) or not all(parse_model(name) for name in names):
            raise QuotaError(f"gpu_labels[{key!r}]={names!r} is no list of labels: give one such as ['teaching']")
        if any(is_mps(name) for name in names):
            raise QuotaError(f"gpu_labels[{key!r}]={names!r} has {MPS!r}, which mps_gpus gives: take another name")
        if any(names_part(name) for name in names):
            raise QuotaError(f"gpu_labels[{key!r}]={names!r} has {MIG!r}, as parts of GPUs are called: take another")

    def given_to(gpu: Gpu) -> tuple[str, ...]:
        return (*gpu.labels, *labels.get(str(gpu.index), ()), *labels.get(gpu.uuid, ()))

    return [replace(gpu, labels=given_to(gpu)) for gpu in every]


def share_by_mps(gpus: Iterable[Gpu], given: Sequence[str]) -> list[Gpu]:
    """The same GPUs; those of `given`, by index or UUID, are shared by MPS. Raises QuotaError."""
    every, keys = list(gpus), {str(key) for key in given}
    _check_known(every, keys, "mps_gpus")
    if keys and any(gpu.emulated for gpu in every):
        raise QuotaError("mps_gpus needs NVIDIA's Multi-Process Service, and emulated GPUs have none: leave one out")
    if parts := [gpu for gpu in every if gpu.mig and {str(gpu.index), gpu.uuid} & keys]:
        named = f"mps_gpus names GPU {parts[0].index}"
        raise QuotaError(f"{named}, which is a part of one (MIG) and for one slice: leave it out")
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
    emulated = is_emulating()
    return Gpu(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory=_memory(handle),
        where=_emulated(f"gpu{index}") if emulated else pynvml.nvmlDeviceGetPciInfo(handle).busId,
        emulated=emulated,
        devices=() if emulated else _devices(handle),
    )


def _describe_part(index: int, parent_index: int, handle: Any) -> Gpu:
    """index: it gets one after those of whole GPUs. Facts: NVIDIA's MIG User Guide, and nvml.h."""
    parent = pynvml.nvmlDeviceGetHandleByIndex(parent_index)
    emulated, name = is_emulating(), pynvml.nvmlDeviceGetName(handle)
    gpu_instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
    compute_instance = pynvml.nvmlDeviceGetComputeInstanceId(handle)
    # of an A100 or H100 there are seven compute slices, and at most as many parts
    slices = pynvml.nvmlDeviceGetAttributes(handle).computeInstanceSliceCount
    devices: tuple[str, ...] = ()
    if not emulated:
        instance = f"gpu{pynvml.nvmlDeviceGetMinorNumber(parent)}/mig/gi{gpu_instance}"
        devices = (*_devices(parent), _capability(instance), _capability(f"{instance}/ci{compute_instance}"))
    return Gpu(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=name if MIG in name else f"{name} {MIG}",
        memory=_memory(handle),
        where=_emulated(f"gpu{parent_index}.mig{gpu_instance}") if emulated else "",
        emulated=emulated,
        devices=devices,
        labels=(MIG,),
        cores=float(100 * slices // pynvml.nvmlDeviceGetMaxMigDeviceCount(parent)),
    )


def _memory(handle: Any) -> int:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return int(memory.total - memory.reserved)


def _emulated(name: str) -> str:
    return f"{os.environ[ENV_EMULATED_DIR]}/{name}"


def _devices(handle: Any) -> tuple[str, ...]:
    """Files that a program on the GPU opens."""
    shared = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
    return (
        f"/dev/nvidia{pynvml.nvmlDeviceGetMinorNumber(handle)}",
        *(path for path in shared if os.path.exists(path)),
    )


class _NoCapabilityError(RuntimeError):
    """The driver does not say which file lets a program onto a part."""


def _capability(instance: str) -> str:
    """The file that lets a program onto an instance. Raises _NoCapabilityError."""
    access = _CAPABILITIES / instance / "access"
    try:
        said = dict(line.split(":", 1) for line in access.read_text().splitlines())
        device = _CAPABILITY_DEVICES / f"nvidia-cap{int(said['DeviceFileMinor'])}"
    except (OSError, KeyError, ValueError) as error:
        raise _NoCapabilityError(f"{access} names no file ({error!r}): see to the driver's installation") from error
    if not device.exists():
        raise _NoCapabilityError(f"{device} is not there: 'nvidia-modprobe -f {access}' makes it")
    return str(device)


def _handle(gpu: Gpu) -> Any:
    return pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid) if gpu.mig else pynvml.nvmlDeviceGetHandleByIndex(gpu.index)


def processes(gpu: Gpu) -> dict[int, int]:
    """Who is on the GPU, for compute or for graphics, and with how many bytes. Empty where the driver does not tell."""
    found: dict[int, int] = {}
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        with contextlib.suppress(pynvml.NVMLError):
            for row in ask(_handle(gpu)):
                found[int(row.pid)] = max(int(row.usedGpuMemory or 0), found.get(int(row.pid), 0))
    return found


def mps_clients(gpu: Gpu) -> set[int] | None:
    """Who is on the GPU by way of MPS; None: the driver does not tell."""
    try:
        rows = pynvml.nvmlDeviceGetMPSComputeRunningProcesses(_handle(gpu))
    except pynvml.NVMLError:
        return None
    return {int(row.pid) for row in rows}


def utilisation(gpu: Gpu, since_us: int) -> dict[int, int]:
    """Percent of the GPU's compute by process since a time. Empty where the driver does not tell, as of a part."""
    try:
        samples = pynvml.nvmlDeviceGetProcessUtilization(_handle(gpu), since_us)
    except pynvml.NVMLError:
        return {}
    latest = {sample.pid: sample for sample in sorted(samples, key=lambda sample: int(sample.timeStamp))}
    return {int(pid): int(sample.smUtil) for pid, sample in latest.items() if sample.timeStamp > since_us}
