"""Tenants, from creation to removal: the one place that changes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import select
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..api import Json, Refused
from ..native import layout, native_dir
from ..paths import TENANT_SOCKET
from ..quotas import Quota, share_now
from . import gpus as gpu_module
from . import processes
from .attribution import attribute
from .gpus import Gpu
from .guard import Guard, GuardError
from .join import MAX_LISTENERS, JoinServer
from .page import PageState, ProcessRow, SlicePage
from .placement import NoRoom, Room, Strategy, place
from .refusal_watch import RefusalWatch, holder_of
from .shim_tier import Allowance
from .store import Maintenance, Store, Tenant, timestamp

log = logging.getLogger("vgpud")

NAME_MAX = 200
MESSAGE_MAX = 120  # what a toast of JupyterLab shows whole
LABELS_MAX, LABEL_LENGTH = 16, 255
ACTIVE_S = 2.5  # the guard notes once a second who is at work
MAX_UNKNOWN_SYMBOLS = 50  # of a tenant, who may say any name


@dataclass
class Limits:
    """What the admin set for the node. Factors: how much of a GPU may be promised in all."""

    memory_overcommit: float = 1.0
    core_overcommit: float = 1.0
    mem_oversubscribe: float = 1.0
    allow_shim_tier: bool = False
    force_shim_tier: bool = False
    placement: Strategy = Strategy.SPREAD


class _Live:
    """A tenant's open ends in this process."""

    def __init__(self, page: SlicePage) -> None:
        self.page = page
        self.join: JoinServer | None = None
        self.stop_api: Callable[[], None] = lambda: None
        self.listeners: list[int] = []
        self.refusals = RefusalWatch(page)
        self.unknown: set[str] = set()
        self.until = -1
        self.active_at = time.time()  # work of it was on the GPU then, or nobody knows of earlier

    def close(self) -> None:
        self.stop_api()
        if self.until >= 0:
            asyncio.get_running_loop().remove_reader(self.until)
            os.close(self.until)
        if self.join:
            self.join.close()
        for fd in self.listeners:
            os.close(fd)
        self.page.close()


class Manager:
    """vgpud's heart. serve_tenant(id, socket path) opens a tenant's own API and returns how to close it."""

    def __init__(
        self,
        run_dir: Path,
        store: Store,
        gpus: list[Gpu],
        limits: Limits,
        serve_tenant: Callable[[str, Path], Callable[[], None]],
    ) -> None:
        self.gpus = gpus
        self.limits = limits
        self.started = time.time()
        self._store = store
        self.maintenance = store.maintenance()
        self._serve_tenant = serve_tenant
        self._tenants_dir = run_dir / "tenants"
        # names in here are secrets, so it may be passed through but not listed
        self._tenants_dir.mkdir(parents=True, exist_ok=True)
        self._tenants_dir.chmod(0o711)
        self.guard = Guard(run_dir, gpus, self._guard_revived)
        self.tenants: dict[str, Tenant] = {}
        self._live: dict[str, _Live] = {}
        self._usage: dict[int, dict[int, int]] = {}
        self._on_gpu: dict[int, set[int]] = {}  # processes by GPU, as the driver says
        self._seen: dict[int, tuple[int, int]] = {}  # by process, at the last look: when it was started, its bytes
        self._cores: dict[str, int] = {}
        self._guarded_slots: set[int] = set()
        self._unserved: list[Tenant] = []  # stored ones that could not be opened: what they were promised stays theirs
        self.unknown_symbols: dict[str, int] = {}

    # --- life of the daemon ---

    def start(self) -> None:
        adopted = self.guard.start()
        self._guarded_slots = {slot for slot, _ in adopted}
        stored = list(self._store.tenants())
        for tenant in stored:
            self.tenants[tenant.id] = tenant
            try:
                self._open(tenant)
            except Exception:  # the others are served; this one again at the next start
                log.exception("tenant %s can't be served", tenant.name)
                self._live.pop(tenant.id, None)
                self._unserved.append(self.tenants.pop(tenant.id))
        self._guarded_slots.clear()
        by_slot = {tenant.slot: tenant.id for tenant in stored}
        for slot, fd in adopted:
            if live := self._live.get(by_slot.get(slot, "")):
                live.listeners.append(fd)
                continue
            os.close(fd)
            if slot not in by_slot:
                self.guard.remove_tenant(slot)
        for stray in self._tenants_dir.iterdir():
            if stray.name not in by_slot.values():
                shutil.rmtree(stray, ignore_errors=True)

    def stop(self) -> None:
        """Tenants go on under the guard; without any, the guard ends too."""
        for live in self._live.values():
            live.close()
        if self._live:
            log.info("leaving %d slices to guard %d", len(self._live), self.guard.pid)
            self.guard.leave()
        else:
            self.guard.stop()
        self._store.close()

    def _guard_revived(self) -> None:
        for tenant_id, live in self._live.items():
            tenant = self.tenants[tenant_id]
            self._tell_guard(tenant, live.page.fd)
            for fd in live.listeners:
                self.guard.add_listener(tenant.slot, fd)

    # --- what hub and CLI ask for ---

    def find(self, key: str) -> Tenant:
        """By id or by name."""
        for tenant in self.tenants.values():
            if key in (tenant.id, tenant.name):
                return tenant
        raise Refused(404, f"no tenant {key!r} on this node")

    def _promised(self) -> list[Tenant]:
        """All who have a slice, served or not."""
        return [*self.tenants.values(), *self._unserved]

    def rooms(self) -> list[Room]:
        def room(gpu: Gpu) -> Room:
            here = [tenant.quota for tenant in self._promised() if tenant.gpu == gpu.uuid]
            return Room(
                uuid=gpu.uuid,
                index=gpu.index,
                memory_total=int(gpu.memory * self.limits.memory_overcommit),
                memory_reserved=sum(quota.memory for quota in here),
                cores_total=100 * self.limits.core_overcommit,
                cores_reserved=sum(quota.cores for quota in here),
                names=gpu.names,
                slices=len(here),
                taken=any(quota.exclusive for quota in here),
            )

        return [room(gpu) for gpu in self.gpus]

    def create(
        self,
        name: str,
        quota: Quota,
        *,
        gpu: str | None = None,
        owner: int | None = None,
        until_pid: int = 0,
        ceiling: Quota | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Json:
        """Place, reserve, persist, open. Returns what a launcher needs: see `_describe_launch`.

        gpu: only on this one. owner: the user who alone may enter the slice. until_pid: removed with that process.
        ceiling: what no resize may pass. labels: kept and told again; they mean nothing here.
        """
        _check_ceiling(quota, ceiling)
        if self.maintenance and self.maintenance.closed:
            raise Refused(503, f"this node gives no new slices now: {self.maintenance.message}")
        if not name or len(name) > NAME_MAX or not name.isprintable():
            raise Refused(400, f"name={name[:40]!r} can't name a tenant: give 1 to {NAME_MAX} printable characters")
        _check_labels(labels or {})
        if any(tenant.name == name for tenant in self._promised()):
            raise Refused(409, f"tenant {name!r} exists already: remove it first, or choose another name")
        try:
            held = [tenant.quota for tenant in self._promised()]
            room = place(quota, self.rooms(), gpu, self.limits.placement, held)
        except NoRoom as error:
            raise Refused(409, str(error)) from error
        used = {tenant.slot for tenant in self._promised()}
        slot = next((slot for slot in range(layout()["tenants_max"]) if slot not in used), None)
        if slot is None:
            raise Refused(409, f"this node has {len(used)} tenants, the most that it can hold")
        tenant = Tenant(
            secrets.token_hex(16), name, slot, room.uuid, quota, timestamp(), until_pid, owner, ceiling, labels or {}
        )
        self._store.add(tenant)
        self.tenants[tenant.id] = tenant
        try:
            self._open(tenant)
        except Exception:
            self.remove(tenant.id)
            raise
        log.info("tenant %s: %s on GPU %d", name, quota, room.index)
        return self.describe(tenant) | {"launch": self._describe_launch(tenant)}

    def resize(self, key: str, quota: Quota) -> Json:
        """In force at once. A quota below what is held refuses new memory and kills nothing."""
        tenant = self.find(key)
        if (quota.model, quota.exclusive) != (tenant.quota.model, tenant.quota.exclusive):
            raise Refused(409, f"{tenant.name} stays where it is: model and exclusive are for a new slice")
        _check_ceiling(quota, tenant.ceiling)
        others = [t.quota for t in self._promised() if t.gpu == tenant.gpu and t.id != tenant.id]
        room = next((room for room in self.rooms() if room.uuid == tenant.gpu), None)
        if room is None:
            raise Refused(409, f"the GPU of {tenant.name} is not in this node any more: stop it and start it again")
        memory = room.memory_total - sum(other.memory for other in others)
        cores = room.cores_total - sum(other.cores for other in others)
        if quota.memory > max(memory, tenant.quota.memory) or quota.cores > max(cores, tenant.quota.cores):
            raise Refused(
                409,
                f"{quota} does not fit on GPU {room.index} beside the others: at most "
                f"{replace(quota, memory=max(memory, 0), cores=max(cores, 0))}",
            )
        self._store.resize(tenant.id, quota)
        tenant = replace(tenant, quota=quota)
        self.tenants[tenant.id] = tenant
        self._tell_guard(tenant)
        return self.describe(tenant)

    def label(self, key: str, changes: Mapping[str, str | None]) -> Json:
        """Add or change what its maker says of it; None takes a label away."""
        tenant = self.find(key)
        labels = {name: text for name, text in {**tenant.labels, **changes}.items() if text is not None}
        _check_labels(labels)
        self._store.set_labels(tenant.id, labels)
        self.tenants[tenant.id] = replace(tenant, labels=labels)
        return self.describe(self.tenants[tenant.id])

    def remove(self, key: str) -> None:
        """Forget the slice. Processes that still use the GPU in it are ended: what they hold would be nobody's."""
        tenant = self.find(key)
        self._store.remove(tenant.id)
        del self.tenants[tenant.id]
        if live := self._live.pop(tenant.id, None):
            if live.join and live.join.shim:
                live.join.shim.end_all()
            live.close()
        try:
            self.guard.remove_tenant(tenant.slot)
        except GuardError as error:
            log.warning("removing %s while the guard restarts: %s", tenant.name, error)
        shutil.rmtree(self._tenants_dir / tenant.id, ignore_errors=True)
        log.info("tenant %s removed", tenant.name)

    def set_maintenance(self, message: str, closed: bool) -> Maintenance:
        """Tell everybody who has a slice here; closed: and give no new ones. Slices that there are go on."""
        text = message.strip()
        if not text or len(text) > MESSAGE_MAX or not text.isprintable():
            raise Refused(400, f"message={message[:40]!r} tells nobody: give 1 to {MESSAGE_MAX} printable characters")
        said = Maintenance(text, closed, time.time())
        self._store.set_maintenance(said)
        self.maintenance = said
        log.info("maintenance: %s%s", text, ", no new slices" if closed else "")
        return said

    def end_maintenance(self) -> None:
        self._store.set_maintenance(None)
        self.maintenance = None
        log.info("maintenance is over")

    # --- a tenant's open ends ---

    def directory(self, tenant: Tenant) -> Path:
        return self._tenants_dir / tenant.id

    def _open(self, tenant: Tenant) -> None:
        directory = self.directory(tenant)
        # the daemon's own: what a tenant could rename or link in here, root would follow. Its name is the secret.
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        page = SlicePage(directory / layout()["page_file"], tenant.gpu)
        live = self._live[tenant.id] = _Live(page)
        self._tell_guard(tenant, page.fd)
        live.join = JoinServer(
            directory,
            page,
            allowance=lambda: self._allowance(self.tenants[tenant.id]),
            left_over=self._left_over,
            set_managed=lambda pid, size: self.guard.set_managed(tenant.slot, pid, size),
            probe=self._probe,
            join=lambda fd: self._join(tenant.id, fd),
            note_unknown=lambda symbol: self._note_unknown(live, symbol),
            note_refused=live.refusals.tell,
            allow_shim=self.limits.allow_shim_tier,
            guarded=tenant.slot in self._guarded_slots,
            owner=tenant.owner,
        )
        live.stop_api = self._serve_tenant(tenant.id, directory / TENANT_SOCKET)
        if tenant.until_pid:
            self._watch(tenant, live)

    def _probe(self, pid: int) -> str | None:
        return "this node is set to tier shim" if self.limits.force_shim_tier else self.guard.probe(pid)

    def _watch(self, tenant: Tenant, live: _Live) -> None:
        loop = asyncio.get_running_loop()
        try:
            live.until = os.pidfd_open(tenant.until_pid)
        except OSError:  # it ended while nobody looked
            loop.call_soon(self._remove_ended, tenant.id)
            return
        loop.add_reader(live.until, self._remove_ended, tenant.id)

    def _remove_ended(self, tenant_id: str) -> None:
        if tenant_id in self.tenants:
            self.remove(tenant_id)

    def _join(self, tenant_id: str, fd: int) -> str | None:
        live, tenant = self._live[tenant_id], self.tenants[tenant_id]
        if len(live.listeners) >= MAX_LISTENERS:
            os.close(fd)
            return f"this slice has {MAX_LISTENERS} launchers running, the most that it may"
        live.listeners.append(fd)
        # a guard that is being restarted will be given this listener with the others
        with contextlib.suppress(GuardError):
            self.guard.add_listener(tenant.slot, fd)
        asyncio.get_running_loop().call_soon(self._drop_dead_listeners, live)
        return None

    def _note_unknown(self, live: _Live, symbol: str) -> None:
        if symbol not in live.unknown and len(live.unknown) >= MAX_UNKNOWN_SYMBOLS:
            return
        live.unknown.add(symbol)
        if symbol not in self.unknown_symbols:
            log.warning("the shim does not know %s and let it through: is there a newer jupyter-vgpu?", symbol)
        self.unknown_symbols[symbol] = self.unknown_symbols.get(symbol, 0) + 1

    @staticmethod
    def _drop_dead_listeners(live: _Live) -> None:
        poller = select.poll()
        for fd in live.listeners:
            poller.register(fd, 0)
        for fd, events in poller.poll(0):
            if events & select.POLLHUP:  # no process is left under that filter
                live.listeners.remove(fd)
                os.close(fd)

    def _tell_guard(self, tenant: Tenant, page: int = -1) -> None:
        index = next((i for i, gpu in enumerate(self.gpus) if gpu.uuid == tenant.gpu), None)
        if index is None:
            log.error("tenant %s: its GPU %s is not in this node any more", tenant.name, tenant.gpu)
            return
        try:
            self.guard.set_tenant(tenant.slot, index, tenant.quota, self.limits.mem_oversubscribe, tenant.id, page)
        except GuardError as error:
            log.warning("telling the guard of %s: %s", tenant.name, error)
        if join := self._live[tenant.id].join:
            join.refresh()

    # --- numbers ---

    def sample(self, since_us: int) -> None:
        """Refresh compute use; runs on a thread, for NVML may take its time."""
        self._usage = {gpu.index: gpu_module.utilisation(gpu.index, since_us) for gpu in self.gpus}
        if any(live.join and live.join.shim for live in list(self._live.values())):
            self._on_gpu = {gpu.index: gpu_module.processes(gpu.index) for gpu in self.gpus}

    def publish_sample(self) -> None:
        """What was sampled, onto each tenant's page: NVML in the slice says the same as the daemon."""
        now = time.time_ns()
        self._cores = self._cores_by_tenant()
        self._witness()
        for tenant_id, live in self._live.items():
            try:
                if live.join:
                    live.join.refresh()
                self._note_activity(live, self._cores.get(tenant_id, 0))
                live.page.write_busy(self._usage.get(self._index(self.tenants[tenant_id]), {}), now)
                live.refusals.look()
            except Exception:  # the others' numbers go on
                log.exception("sampling tenant %s", self.tenants[tenant_id].name)

    @staticmethod
    def _note_activity(live: _Live, cores: int) -> None:
        """Kept beside the processes' own times, which end with them."""
        last = max((row.active_ns / 1e9 for row in live.page.read().processes), default=0.0)
        # of what goes round the shim nobody knows whether it works
        unseen = live.join and live.join.shim and live.join.shim.outside
        live.active_at = time.time() if cores or unseen else max(live.active_at, last)

    def _index(self, tenant: Tenant) -> int:
        """Of its GPU; -1: that is not in this node any more."""
        return next((gpu.index for gpu in self.gpus if gpu.uuid == tenant.gpu), -1)

    def _cores_by_tenant(self) -> dict[str, int]:
        """Percent of its GPU's compute, as last sampled."""
        found = {}
        for tenant_id, live in self._live.items():
            busy = self._usage.get(self._index(self.tenants[tenant_id]), {})
            rows = live.page.read().processes if busy else ()
            found[tenant_id] = sum(busy.get(row.pid, 0) for row in rows)
        return found

    def _witness(self) -> None:
        """Tenants in tier `shim`: what their processes have on any GPU, by the driver's account."""
        tiers = {tenant_id: live.join.shim for tenant_id, live in self._live.items() if live.join and live.join.shim}
        self._seen.clear()
        if not tiers:
            return
        directories = {str(self.directory(tenant)): tenant.id for tenant in self.tenants.values()}
        pids = set().union(*self._on_gpu.values())
        owners = attribute(pids, tiers, directories)
        started = {pid: processes.started(pid) for pid in pids}
        self._seen = {pid: (started[pid], self._memory_of(pid)) for pid in pids if pid in owners or not started[pid]}
        for tenant_id, tier in tiers.items():
            try:
                tier.witness(
                    {pid: self._seen[pid][1] for pid, owner in owners.items() if owner == tenant_id},
                    self.tenants[tenant_id].quota.memory,
                )
            except Exception:  # the others are looked at
                log.exception("looking after tenant %s", self.tenants[tenant_id].name)

    def _left_over(self, pid: int) -> int:
        """Bytes of an earlier process of that number. What the process has taken itself is not left over."""
        started, size = self._seen.get(pid, (0, 0))
        return size if started != processes.started(pid) else 0

    def _memory_of(self, pid: int) -> int:
        """Bytes of all GPUs that a process is on."""
        return sum(self.guard.memory_of(index, pid) for index, pids in self._on_gpu.items() if pid in pids)

    def describe(self, tenant: Tenant) -> Json:
        """Quota and usage of one tenant; bytes and percent."""
        live = self._live[tenant.id]
        shim = live.join.shim if live.join else None
        if live.join:
            live.join.refresh()
        state = live.page.read()
        gpu = next((gpu for gpu in self.gpus if gpu.uuid == tenant.gpu), None)
        busy = self._usage.get(gpu.index, {}) if gpu else {}
        return {
            "id": tenant.id,
            "name": tenant.name,
            "created": tenant.created,
            "tier": state.tier,
            "outside": shim.outside if shim else [],
            "gpu": {
                "uuid": tenant.gpu,
                "index": gpu.index if gpu else None,
                "name": gpu.name if gpu else "not in this node any more",
                "emulated": gpu.emulated if gpu else False,
            },
            "quota": tenant.quota.as_json(),
            "ceiling": tenant.ceiling.as_json() if tenant.ceiling else None,
            "labels": dict(tenant.labels),
            "maintenance": self.describe_maintenance(),
            "usage": {
                "memory": state.memory_used,
                "memory_managed": state.memory_managed,
                "memory_peak": state.memory_peak,
                "memory_over_by": self._over_by(tenant.quota.memory, state),
                "cores": self._cores.get(tenant.id, 0),
                "on_gpu_ns": state.on_ns,
            },
            "activity": {"busy": time.time() - live.active_at < ACTIVE_S, "last_active": live.active_at},
            "refusals": {
                "count": state.refusals,
                "last": {
                    "bytes": state.refused_bytes,
                    "free": state.refused_free,
                    "pid": state.refused_pid,
                    "time": state.refused_at_ns / 1e9,
                }
                if state.refusals
                else None,
                "recent": [asdict(refusal) for refusal in live.refusals],
            },
            "processes": [
                asdict(holder_of(row)) | _activity(row, busy.get(row.pid, 0))
                for row in sorted(state.processes, key=lambda row: -row.memory)
            ],
        }

    def _over_by(self, quota: int, state: PageState) -> int:
        """Bytes that a shrunk quota lacks; managed memory may overflow into host memory as far as the admin allows."""
        device = state.memory_used - state.memory_managed
        return max(0, device - quota, state.memory_used - self._memory_limits(quota)[1])

    def _memory_limits(self, quota: int) -> tuple[int, int]:
        """Of device memory, and of device and managed memory together; bytes."""
        return quota, quota * round(100 * self.limits.mem_oversubscribe) // 100  # as the guard rounds

    def _allowance(self, tenant: Tenant) -> Allowance:
        memory, limit = self._memory_limits(tenant.quota.memory)
        at_work = [
            other.quota.cores
            for other in self.tenants.values()
            if other.gpu == tenant.gpu and other.id != tenant.id and self._cores.get(other.id, 0) > 0
        ]
        return Allowance(memory, limit, share_now(tenant.quota, at_work))

    def _describe_launch(self, tenant: Tenant) -> Json:
        """How to start a program in the slice: prefix, environment, and for containers devices and mounts."""
        gpu = next(gpu for gpu in self.gpus if gpu.uuid == tenant.gpu)
        environment = {layout()["env_dir"]: str(self.directory(tenant)), "CUDA_VISIBLE_DEVICES": gpu.uuid}
        if gpu.emulated:
            environment[gpu_module.ENV_EMULATED_DIR] = str(Path(gpu.where).parent)
        return {
            "directory": str(self.directory(tenant)),
            "native": str(native_dir()),
            "environment": environment,
            "devices": list(gpu.devices),
            "emulated_device": gpu.where if gpu.emulated else None,
        }

    def health(self) -> Json:
        return {
            "status": "ok" if self.guard.pid and Path(f"/proc/{self.guard.pid}").exists() else "guard restarting",
            "backend": self.guard.backend,
            "guard": {"pid": self.guard.pid, "restarts": self.guard.restarts},
            "tenants": len(self.tenants),
            "uptime_s": round(time.time() - self.started, 1),
            "allow_shim_tier": self.limits.allow_shim_tier,
        }

    def describe_gpus(self) -> list[Json]:
        rooms = {room.uuid: room for room in self.rooms()}
        closed = self.maintenance.message if self.maintenance and self.maintenance.closed else None
        return [_describe_gpu(gpu, rooms[gpu.uuid], self._in(gpu), closed) for gpu in self.gpus]

    def describe_maintenance(self) -> Json | None:
        return asdict(self.maintenance) if self.maintenance else None

    def _in(self, gpu: Gpu) -> Iterable[Tenant]:
        return (tenant for tenant in self.tenants.values() if tenant.gpu == gpu.uuid)


def _describe_gpu(gpu: Gpu, room: Room, tenants: Iterable[Tenant], closed: str | None) -> Json:
    """closed: why nothing of it is given now; then nothing is free."""
    memory_free, cores_free = (0, 0) if closed else (room.memory_free, room.cores_free)
    return {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name,
        "labels": list(gpu.labels),
        "emulated": gpu.emulated,
        "taken": room.taken,
        "memory": {"total": room.memory_total, "reserved": room.memory_reserved, "free": memory_free},
        "cores": {"total": room.cores_total, "reserved": room.cores_reserved, "free": cores_free},
        "closed": closed,
        "tenants": sorted(tenant.name for tenant in tenants),
    }


def _check_labels(labels: Mapping[str, object]) -> None:
    """Raises Refused."""
    texts = [*labels, *labels.values()]
    if len(labels) > LABELS_MAX or not all(isinstance(text, str) and len(text) <= LABEL_LENGTH for text in texts):
        raise Refused(400, f"labels: give up to {LABELS_MAX} texts by name, of up to {LABEL_LENGTH} characters each")


def _check_ceiling(quota: Quota, ceiling: Quota | None) -> None:
    if ceiling and not quota.is_within(ceiling):
        raise Refused(403, f"{quota} is above this slice's ceiling: give at most {ceiling}")


def _activity(row: ProcessRow, percent: int) -> Json:
    """Busy now, and when last: its rings tell of work that was handed in, NVML of kernels that run for long."""
    last = row.active_ns / 1e9
    busy = percent > 0 or time.time() - last < ACTIVE_S
    return {"cores": percent, "busy": busy, "last_active": time.time() if percent else last or None}
