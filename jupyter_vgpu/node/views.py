"""What vgpud tells of tenants and GPUs, as its API has it. Bytes, percent, and seconds since 1970."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from ..api import Json
from ..native import layout, native_dir
from ..quotas import Quota
from . import gpus as gpu_module
from .gpus import Gpu
from .live import Live
from .mps import Mps
from .page import PageState, ProcessRow
from .placement import Room
from .refusal_watch import holder_of
from .store import Maintenance, Tenant

ACTIVE_S = 2.5  # the guard notes once a second who is at work


def of_tenant(
    tenant: Tenant,
    gpu: Gpu | None,
    live: Live,
    state: PageState,
    *,
    cores: int,
    busy: Mapping[int, int],
    over_by: int,
    maintenance: Maintenance | None,
) -> Json:
    """Quota and usage. gpu None: it is not in this node any more. busy: percent of the GPU's compute by process."""
    return {
        "id": tenant.id,
        "name": tenant.name,
        "created": tenant.created,
        "tier": state.tier,
        "outside": live.shim.outside if live.shim else [],
        "gpu": {
            "uuid": tenant.gpu,
            "index": gpu.index if gpu else None,
            "name": gpu.name if gpu else "not in this node any more",
            "emulated": gpu.emulated if gpu else False,
            "mps": gpu.mps if gpu else False,
            "mig": gpu.mig if gpu else False,
            "cores": gpu.cores if gpu else None,
        },
        "quota": tenant.quota.as_json(),
        "ceiling": tenant.ceiling.as_json() if tenant.ceiling else None,
        "labels": dict(tenant.labels),
        "maintenance": of_maintenance(maintenance),
        "usage": {
            "memory": state.memory_used,
            "memory_managed": state.memory_managed,
            "memory_peak": state.memory_peak,
            "memory_over_by": over_by,
            "cores": cores,
            "on_gpu_ns": state.on_ns,
        },
        "activity": {"busy": time.time() - live.active_at < ACTIVE_S, "last_active": live.active_at},
        "refusals": {
            "count": state.refusals,
            "last": _last_refusal(state),
            "recent": [asdict(refusal) for refusal in live.refusals],
        },
        "processes": [
            asdict(holder_of(row)) | _activity(row, busy.get(row.pid, 0))
            for row in sorted(state.processes, key=lambda row: -row.memory)
        ],
    }


def _last_refusal(state: PageState) -> Json | None:
    if not state.refusals:
        return None
    return {
        "bytes": state.refused_bytes,
        "free": state.refused_free,
        "pid": state.refused_pid,
        "time": state.refused_at_ns / 1e9,
    }


def _activity(row: ProcessRow, percent: int) -> Json:
    """Busy now, and when last: its rings tell of work that was handed in, NVML of kernels that run for long."""
    last = row.active_ns / 1e9
    busy = percent > 0 or time.time() - last < ACTIVE_S
    return {"cores": percent, "busy": busy, "last_active": time.time() if percent else last or None}


def of_launch(gpu: Gpu, directory: Path, quota: Quota, mps: Mps | None) -> Json:
    """How to start a program in a slice: prefix, environment, and for containers devices and mounts.

    mps: the service that shares this GPU; None: it is shared in turns.
    """
    environment = {layout()["env_dir"]: str(directory), "CUDA_VISIBLE_DEVICES": gpu.uuid}
    if mps:
        environment |= mps.environment(quota)
    if gpu.emulated:
        environment[gpu_module.ENV_EMULATED_DIR] = str(Path(gpu.where).parent)
    return {
        "directory": str(directory),
        "native": str(native_dir()),
        "environment": environment,
        "devices": list(gpu.devices),
        "mps": str(mps.directory) if mps else None,
        "emulated_device": gpu.where if gpu.emulated else None,
    }


def of_gpu(gpu: Gpu, room: Room, tenants: Iterable[Tenant], maintenance: Maintenance | None) -> Json:
    """closed: why nothing of it is given now; then nothing is free. slices: also those that are not served now."""
    closed = maintenance.message if maintenance and maintenance.closed else None
    memory_free, cores_free = (0, 0) if closed else (room.memory_free, room.cores_free)
    return {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name,
        "labels": list(gpu.labels),
        "emulated": gpu.emulated,
        "slices": room.slices,
        "taken": room.taken,
        "memory": {"total": room.memory_total, "reserved": room.memory_reserved, "free": memory_free},
        "cores": {"total": room.cores_total, "reserved": room.cores_reserved, "free": cores_free},
        "closed": closed,
        "tenants": sorted(tenant.name for tenant in tenants),
    }


def of_maintenance(maintenance: Maintenance | None) -> Json | None:
    return asdict(maintenance) if maintenance else None
