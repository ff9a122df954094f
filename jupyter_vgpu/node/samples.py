"""What the driver says of the tenants' processes, once a second: compute use, and in tier `shim` memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import gpus as gpu_module
from . import processes
from .attribution import attribute
from .gpus import Gpu
from .guard import Guard, GuardError
from .live import Live
from .store import Tenant

log = logging.getLogger("vgpud")


class Samples:
    """tenants, live: by id, as they are at any time. directory: of a tenant."""

    def __init__(
        self,
        gpus: Sequence[Gpu],
        guard: Guard,
        tenants: Mapping[str, Tenant],
        live: Mapping[str, Live],
        directory: Callable[[Tenant], Path],
    ) -> None:
        self._gpus, self._guard, self._tenants, self._live, self._directory = gpus, guard, tenants, live, directory
        # by a GPU's UUID
        self._usage: dict[str, dict[int, int]] = {}
        self._on_gpu: dict[str, dict[int, int]] = {}  # processes and their bytes, as NVML says
        self._by_mps: dict[str, set[int] | None] = {}  # of them, those that are there by way of MPS
        self._seen: dict[int, tuple[int, int]] = {}  # by process, at the last look: when it was started, its bytes
        self._cores: dict[str, int] = {}  # by tenant
        self._used: dict[str, tuple[int, int]] = {}  # of tenants on parts, at the last look: now, and time on the GPU

    def take(self, since_us: int) -> None:
        """Refresh compute use; runs on a thread, for NVML may take its time."""
        self._usage = {gpu.uuid: gpu_module.utilisation(gpu, since_us) for gpu in self._gpus if not gpu.mig}
        if any(live.shim for live in list(self._live.values())):
            self._on_gpu = {gpu.uuid: gpu_module.processes(gpu) for gpu in self._gpus}
            self._by_mps = {gpu.uuid: gpu_module.mps_clients(gpu) for gpu in self._gpus if gpu.mps}

    def publish(self) -> None:
        """What was sampled, onto each tenant's page: NVML in the slice says the same as the daemon."""
        now = time.time_ns()
        self._cores = self._cores_by_tenant()
        try:
            self._witness()
        except GuardError as error:  # looked at again in a second
            log.warning("the driver's account of tenants in tier shim: %s", error)
        for tenant_id, live in self._live.items():
            try:
                live.refresh()
                self._note_activity(live, self._cores.get(tenant_id, 0))
                live.page.write_busy(self.busy(self._tenants[tenant_id]), now)
                live.refusals.look()
            except Exception:  # the others' numbers go on
                log.exception("sampling tenant %s", self._tenants[tenant_id].name)

    @staticmethod
    def _note_activity(live: Live, cores: int) -> None:
        """Kept beside the processes' own times, which end with them."""
        last = max((row.active_ns / 1e9 for row in live.page.read().processes), default=0.0)
        # of what goes round the shim nobody knows whether it works
        unseen = live.shim and live.shim.outside
        live.active_at = time.time() if cores or unseen else max(live.active_at, last)

    def _cores_by_tenant(self) -> dict[str, int]:
        """Percent of its GPU's compute, as last sampled."""
        parts = {gpu.uuid: gpu for gpu in self._gpus if gpu.mig}
        found = {}
        for tenant_id, live in self._live.items():
            tenant = self._tenants[tenant_id]
            if part := parts.get(tenant.gpu):
                found[tenant_id] = self._cores_of_part(tenant_id, live, part)
                continue
            busy = self.busy(tenant)
            rows = live.page.read().processes if busy else ()
            found[tenant_id] = sum(busy.get(row.pid, 0) for row in rows)
        self._used = {key: value for key, value in self._used.items() if key in self._live}
        return found

    def _cores_of_part(self, tenant_id: str, live: Live, part: Gpu) -> int:
        """NVML does not tell; the shim has measured it."""
        now, used = time.monotonic_ns(), live.shim.used_ns if live.shim else 0
        then, before = self._used.get(tenant_id, (now, used))
        self._used[tenant_id] = now, used
        return round(part.cores * min(1.0, max(0.0, (used - before) / max(1, now - then))))

    def _witness(self) -> None:
        """Tenants in tier `shim`: what their processes have on any GPU, by the driver's account."""
        tiers = {tenant_id: live.shim for tenant_id, live in self._live.items() if live.shim}
        self._seen.clear()
        if not tiers:
            return
        directories = {str(self._directory(tenant)): tenant.id for tenant in self._tenants.values()}
        pids = set().union(*self._on_gpu.values())
        owners = attribute(pids, tiers, directories)
        started = {pid: processes.started(pid) for pid in pids}
        self._seen = {pid: (started[pid], self._memory_of(pid)) for pid in pids if pid in owners or not started[pid]}
        for tenant_id, tier in tiers.items():
            try:
                tier.witness(
                    {pid: self._seen[pid][1] for pid, owner in owners.items() if owner == tenant_id},
                    self._tenants[tenant_id].quota.memory,
                )
            except Exception:  # the others are looked at
                log.exception("looking after tenant %s", self._tenants[tenant_id].name)

    def left_over(self, pid: int) -> int:
        """Bytes of an earlier process of that number. What the process has taken itself is not left over."""
        started, size = self._seen.get(pid, (0, 0))
        return size if started != processes.started(pid) else 0

    def _memory_of(self, pid: int) -> int:
        """Bytes of all GPUs that a process is on."""

        def on(gpu: Gpu) -> int:
            # the guard asks the driver now; of parts it knows nothing
            ask = self._guard.memory_of
            return self._on_gpu[gpu.uuid][pid] if gpu.mig else ask(self._guard.numbers[gpu.uuid], pid)

        return sum(on(gpu) for gpu in self._gpus if pid in self._on_gpu.get(gpu.uuid, ()))

    def by_mps(self, tenant: Tenant) -> int | None:
        """How many of its processes are on the GPU, all by way of MPS; None: not all of them are."""
        clients, rows = self._by_mps.get(tenant.gpu, set()), self._live[tenant.id].page.read().processes
        there = {row.pid for row in rows} & self._on_gpu.get(tenant.gpu, {}).keys()
        return len(there) if clients is None or there <= clients else None

    def busy(self, tenant: Tenant) -> dict[int, int]:
        """Percent of its GPU's compute by process, others' too; nothing where that is not in this node any more."""
        return self._usage.get(tenant.gpu, {})

    def cores(self, tenant: Tenant) -> int:
        """Percent of its GPU's compute that a tenant uses."""
        return self._cores.get(tenant.id, 0)
