"""What the guard is told of tenants, again until it has heard it: it may be away, or short of memory or threads.

Programs of which the guard does not know wait in their calls; nothing is let through meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .guard import Guard, GuardAway, GuardError
from .live import Live
from .store import Tenant

log = logging.getLogger("vgpud")

_AGAIN_SECONDS = 1.0
_AWAY_SECONDS = 10.0  # a guard that hangs keeps the daemon waiting with each try


class Telling:
    """tenants, live: by id, as they are at any time. oversubscribe: of memory, as Guard.set_tenant has it."""

    def __init__(
        self,
        guard: Guard,
        tenants: Mapping[str, Tenant],
        live: Mapping[str, Live],
        oversubscribe: float,
    ) -> None:
        self._guard, self._tenants, self._live = guard, tenants, live
        self._oversubscribe = oversubscribe
        self._unremoved: list[tuple[Tenant, int]] = []  # removed while no guard heard it, and their pages
        self._later: asyncio.TimerHandle | None = None

    def index_of(self, tenant: Tenant) -> int | None:
        """Its GPU as the guard counts them; None: it has left the node, or is left out."""
        return self._guard.numbers.get(tenant.gpu)

    @property
    def unremoved_slots(self) -> set[int]:
        """Which the guard still takes for those of tenants that are removed."""
        return {tenant.slot for tenant, _ in self._unremoved}

    def tell(self, tenant: Tenant, page: int = -1) -> None:
        """Of a tenant that is there, or of its new quota. page: for one that the guard does not know."""
        try:
            self._set(tenant, page)
        except GuardAway:
            self._try_later()
        self._live[tenant.id].refresh()

    def hand_over(self, tenant: Tenant, listener: int) -> None:
        """A new listener. Raises GuardError where the guard says no."""
        try:
            self._guard.add_listener(tenant.slot, listener)
        except GuardAway:
            self._live[tenant.id].unguarded.append(listener)
            self._try_later()

    def remove(self, tenant: Tenant, page: int | None) -> None:
        """page: of one that the guard may know."""
        try:
            self._guard.remove_tenant(tenant.slot)
        except GuardError as error:
            log.warning("removing %s while the guard restarts: %s", tenant.name, error)
            if page is not None:
                self._unremoved.append((tenant, os.dup(page)))
                self._try_later()

    def tell_all(self) -> None:
        """To a guard that knows nobody."""
        for live in self._live.values():
            live.untold, live.unguarded = True, list(live.listeners)
        self._try()

    def stop(self) -> None:
        if self._later:
            self._later.cancel()

    def _try(self) -> None:
        self.stop()
        self._later = None
        try:
            self._catch_up()
        except GuardAway:  # its successor hears all
            self._try_later(_AWAY_SECONDS)

    def _try_later(self, seconds: float = _AGAIN_SECONDS) -> None:
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(seconds, self._try)

    @contextmanager
    def _or_later(self, what: str, tenant: Tenant) -> Iterator[None]:
        """Raises GuardAway."""
        try:
            yield
        except GuardAway:
            raise
        except GuardError as error:
            log.error("the guard does not %s %s, whose programs wait: %s", what, tenant.name, error)
            self._try_later()

    def _catch_up(self) -> None:
        """Raises GuardAway."""
        for tenant, page in list(self._unremoved):
            self._forget(tenant, page)
        for tenant_id, live in self._live.items():
            tenant = self._tenants[tenant_id]
            if live.untold:
                self._set(tenant, live.page.fd)
            for fd in list(live.unguarded):
                with self._or_later("take", tenant):
                    self._guard.add_listener(tenant.slot, fd, old=True)
                    live.unguarded.remove(fd)

    def _set(self, tenant: Tenant, page: int) -> None:
        """Raises GuardAway."""
        index, live = self.index_of(tenant), self._live[tenant.id]
        if index is None:
            live.untold, live.unguarded = False, []
            log.error("tenant %s: its GPU %s is not shared by this node any more", tenant.name, tenant.gpu)
            return
        live.untold = True
        with self._or_later("take", tenant):
            self._guard.set_tenant(tenant.slot, index, tenant.quota, self._oversubscribe, tenant.id, page)
            live.untold = False

    def _forget(self, tenant: Tenant, page: int) -> None:
        """One that was started since knows nobody: it is told whom it forgets, and ends who is left in the slice.

        Raises GuardAway.
        """
        index = self.index_of(tenant)
        with self._or_later("forget", tenant):
            if index is not None:
                self._guard.set_tenant(tenant.slot, index, tenant.quota, self._oversubscribe, tenant.id, page)
            self._guard.remove_tenant(tenant.slot)
            self._unremoved.remove((tenant, page))
            os.close(page)
