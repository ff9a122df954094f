"""Tenants, from creation to removal: the one place that changes them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import select
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..api import Json, Refused, checked_message
from ..native import layout
from ..paths import TENANT_SOCKET
from ..quotas import Quota, goes_alone, is_mps, share_now
from . import views
from .gpus import Gpu
from .guard import Guard, GuardError
from .join import MAX_LISTENERS, JoinServer, NoEntry
from .labels import changed, check_labels, check_name
from .live import Live
from .mps import Mps
from .page import PageState, SlicePage
from .placement import NoRoom, Room, Strategy, place
from .samples import Samples
from .shim_tier import Allowance
from .store import Maintenance, Store, Tenant, timestamp
from .telling import Telling

log = logging.getLogger("vgpud")

MEASURED = 99.999
"""Percent: all there is, and yet paced, so that the shim measures. Of a part nobody else tells who is at work."""
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
        self.mps = Mps(run_dir, gpus)
        self.limits = limits
        self.started = time.time()
        self._store = store
        self.maintenance = store.maintenance()
        self._serve_tenant = serve_tenant
        self._tenants_dir = run_dir / "tenants"
        # names in here are secrets, so it may be passed through but not listed
        self._tenants_dir.mkdir(parents=True, exist_ok=True)
        self._tenants_dir.chmod(0o711)
        self.guard = Guard(run_dir, gpus)
        self.tenants: dict[str, Tenant] = {}
        self._live: dict[str, Live] = {}
        self.samples = Samples(gpus, self.guard, self.tenants, self._live, self.directory)
        self._telling = Telling(self.guard, self.tenants, self._live, limits.mem_oversubscribe)
        self._guarded_slots: set[int] = set()
        self._unserved: list[Tenant] = []  # stored ones that could not be opened: what they were promised stays theirs
        self.unknown_symbols: dict[str, int] = {}

    # --- life of the daemon ---

    def start(self) -> None:
        stored = list(self._store.tenants())
        self.mps.start(any(is_mps(tenant.quota.model) for tenant in stored))
        adopted = self.guard.start(self._telling.tell_all)
        self._guarded_slots = {slot for slot, _ in adopted}
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
        for slot in set(range(layout()["tenants_max"])) - by_slot.keys():  # removed while nobody told the guard
            self.guard.remove_tenant(slot)
        for stray in self._tenants_dir.iterdir():
            if stray.name not in by_slot.values():
                shutil.rmtree(stray, ignore_errors=True)

    def stop(self) -> None:
        """Tenants go on under the guard; without any, the guard ends too."""
        self._telling.stop()
        for live in self._live.values():
            live.close()
        if self._live:
            log.info("leaving %d slices to guard %d", len(self._live), self.guard.pid)
            self.guard.leave()
        else:
            self.guard.stop()
            self.mps.stop()
        self._store.close()

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
            # of a part the hardware gives no more than there is, and to one slice
            memory, cores = (1.0, 1.0) if gpu.mig else (self.limits.memory_overcommit, self.limits.core_overcommit)
            return Room(
                uuid=gpu.uuid,
                index=gpu.index,
                memory_total=int(gpu.memory * memory),
                memory_reserved=sum(quota.memory for quota in here),
                cores_total=gpu.cores * cores,
                cores_reserved=sum(quota.cores for quota in here),
                names=gpu.names,
                slices=len(here),
                taken=any(goes_alone(quota, gpu.names) for quota in here),
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
        """Place, reserve, persist, open. Returns what a launcher needs: see `views.of_launch`.

        gpu: only on this one. owner: the user who alone may enter the slice. until_pid: removed with that process.
        ceiling: what no resize may pass. labels: kept and told again; they mean nothing here.
        """
        _check_ceiling(quota, ceiling)
        if self.maintenance and self.maintenance.closed:
            raise Refused(409, f"this node gives no new slices now: {self.maintenance.message}")
        check_name(name)
        check_labels(labels or {})
        if any(tenant.name == name for tenant in self._promised()):
            raise Refused(409, f"tenant {name!r} exists already: remove it first, or choose another name")
        try:
            held = [tenant.quota for tenant in self._promised()]
            room = place(quota, self.rooms(), gpu, self.limits.placement, held)
        except NoRoom as error:
            raise Refused(409, str(error)) from error
        used = {tenant.slot for tenant in self._promised()} | self._telling.unremoved_slots
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
        placed = next(each for each in self.gpus if each.uuid == room.uuid)
        mps = self.mps if placed.mps else None
        return self.describe(tenant) | {"launch": views.of_launch(placed, self.directory(tenant), quota, mps)}

    def resize(self, key: str, quota: Quota) -> Json:
        """In force at once. A quota below what is held refuses new memory and kills nothing."""
        tenant = self.find(key)
        if quota.where != tenant.quota.where:
            raise Refused(409, f"{tenant.name} stays where it is: model and exclusive are for a new slice")
        _check_ceiling(quota, tenant.ceiling)
        if is_mps(quota.model) and (quota.cores, quota.policy) != (tenant.quota.cores, tenant.quota.policy):
            raise Refused(
                409, f"{tenant.name} is under MPS, where compute is fixed when a server starts: change memory"
            )
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
        self._telling.tell(tenant)
        return self.describe(tenant)

    def label(self, key: str, changes: Mapping[str, str | None]) -> Json:
        """Add or change what its maker says of it; None takes a label away."""
        tenant = self.find(key)
        labels = changed(tenant.labels, changes)
        self._store.set_labels(tenant.id, labels)
        self.tenants[tenant.id] = replace(tenant, labels=labels)
        return self.describe(self.tenants[tenant.id])

    def remove(self, key: str) -> None:
        """Forget the slice. Processes that still use the GPU in it are ended: what they hold would be nobody's."""
        tenant = self.find(key)
        self._store.remove(tenant.id)
        del self.tenants[tenant.id]
        live = self._live.pop(tenant.id, None)
        if live and live.shim:
            live.shim.end_all()
        self._telling.remove(tenant, live.page.fd if live else None)
        if live:
            live.close()
        shutil.rmtree(self._tenants_dir / tenant.id, ignore_errors=True)
        log.info("tenant %s removed", tenant.name)

    def set_maintenance(self, message: str, closed: bool) -> Maintenance:
        """Tell everybody who has a slice here; closed: and give no new ones. Slices that there are go on."""
        text = checked_message(message)
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
        live = self._live[tenant.id] = Live(page)
        self._telling.tell(tenant, page.fd)
        live.join = JoinServer(
            directory,
            page,
            allowance=lambda: self._allowance(self.tenants[tenant.id]),
            left_over=self.samples.left_over,
            set_managed=lambda pid, size: self.guard.set_managed(tenant.slot, pid, size),
            probe=lambda pid: self._probe(tenant, pid),
            join=lambda fd: self._join(tenant.id, fd),
            note_unknown=lambda symbol: self._note_unknown(live, symbol),
            note_refused=live.refusals.tell,
            allow_shim=self.limits.allow_shim_tier or self._why_unguarded(tenant) is not None,
            guarded=tenant.slot in self._guarded_slots,
            owner=tenant.owner,
        )
        live.stop_api = self._serve_tenant(tenant.id, directory / TENANT_SOCKET)
        if tenant.until_pid:
            self._watch(tenant, live)

    def _probe(self, tenant: Tenant, pid: int) -> str | None:
        if self._telling.index_of(tenant) is None:
            raise NoEntry(f"GPU {tenant.gpu} is not shared by this node any more: stop the server and start it anew")
        return self._why_unguarded(tenant) or self.guard.probe(pid)

    def _why_unguarded(self, tenant: Tenant) -> str | None:
        """Of a GPU that is never in the guard's hands; None: the guard is asked."""
        if self.limits.force_shim_tier:
            return "this node is set to tier shim"
        if is_mps(tenant.quota.model):  # its server and its clients have objects in common, which the guard refuses
            return "this GPU is shared by MPS"
        gpu = self._gpu_of(tenant)
        return "this is a part of a GPU, held by the hardware (MIG)" if gpu and gpu.mig else None

    def _gpu_of(self, tenant: Tenant) -> Gpu | None:
        """None: it is not in this node any more."""
        return next((gpu for gpu in self.gpus if gpu.uuid == tenant.gpu), None)

    def _watch(self, tenant: Tenant, live: Live) -> None:
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
        if why := self._why_unguarded(tenant):  # else it would be taken for guarded, and nobody would look after it
            os.close(fd)
            return f"no guard holds it: {why}"
        self._drop_dead_listeners(live)
        if len(live.listeners) >= MAX_LISTENERS:
            os.close(fd)
            return f"this slice has {MAX_LISTENERS} launchers running, the most that it may"
        live.listeners.append(fd)
        try:
            self._telling.hand_over(tenant, fd)
        except GuardError as error:
            live.forget(fd)
            return f"the guard does not take this program: {error}"
        return None

    def _note_unknown(self, live: Live, symbol: str) -> None:
        if symbol not in live.unknown and len(live.unknown) >= MAX_UNKNOWN_SYMBOLS:
            return
        live.unknown.add(symbol)
        if symbol not in self.unknown_symbols:
            log.warning("the shim does not know %s and let it through: is there a newer jupyter-vgpu?", symbol)
        self.unknown_symbols[symbol] = self.unknown_symbols.get(symbol, 0) + 1

    @staticmethod
    def _drop_dead_listeners(live: Live) -> None:
        poller = select.poll()
        for fd in live.listeners:
            poller.register(fd, 0)
        for fd, events in poller.poll(0):
            if events & select.POLLHUP:  # no process is left under that filter
                live.forget(fd)

    # --- what is told ---

    def describe(self, tenant: Tenant) -> Json:
        """Quota and usage of one tenant: see `views.of_tenant`."""
        live = self._live[tenant.id]
        live.refresh()
        state = live.page.read()
        return views.of_tenant(
            tenant,
            self._gpu_of(tenant),
            live,
            state,
            cores=self.samples.cores(tenant),
            busy=self.samples.busy(tenant),
            over_by=self._over_by(tenant.quota.memory, state),
            maintenance=self.maintenance,
        )

    def _over_by(self, quota: int, state: PageState) -> int:
        """Bytes that a shrunk quota lacks; managed memory may overflow into host memory as far as the admin allows."""
        device = state.memory_used - state.memory_managed
        return max(0, device - quota, state.memory_used - self._memory_limits(quota)[1])

    def _memory_limits(self, quota: int) -> tuple[int, int]:
        """Of device memory, and of device and managed memory together; bytes."""
        return quota, quota * round(100 * self.limits.mem_oversubscribe) // 100  # as the guard rounds

    def _allowance(self, tenant: Tenant) -> Allowance:
        memory, limit = self._memory_limits(tenant.quota.memory)
        clients = self.samples.by_mps(tenant) if is_mps(tenant.quota.model) else None
        if clients is not None:  # MPS gives each process the tenant's percent, so several take turns
            return Allowance(memory, limit, 100 / max(1, clients))
        at_work = [
            other.quota.cores
            for other in self.tenants.values()
            if other.gpu == tenant.gpu and other.id != tenant.id and self.samples.cores(other) > 0
        ]
        gpu = self._gpu_of(tenant)
        share = share_now(tenant.quota, at_work)
        if gpu and gpu.mig:
            share = min(MEASURED, share * 100 / gpu.cores)
        return Allowance(memory, limit, share)

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
        def here(gpu: Gpu) -> list[Tenant]:
            return [tenant for tenant in self.tenants.values() if tenant.gpu == gpu.uuid]

        rooms = {room.uuid: room for room in self.rooms()}
        return [views.of_gpu(gpu, rooms[gpu.uuid], here(gpu), self.maintenance) for gpu in self.gpus]


def _check_ceiling(quota: Quota, ceiling: Quota | None) -> None:
    if ceiling and not quota.is_within(ceiling):
        raise Refused(403, f"{quota} is above this slice's ceiling: give at most {ceiling}")
