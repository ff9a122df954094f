"""What all routes of the service have in common: who may, and how errors are said."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from jupyterhub.services.auth import HubOAuthenticated, UserNotAllowed
from tornado import web

from jupyter_vgpu.api import Json, Refused
from jupyter_vgpu.quotas import QuotaError

from ..database import DatabaseError
from .dispatcher import Dispatcher
from .hub import HubError
from .manager import Manager
from .settings import READ_SCOPE

log = logging.getLogger("vgpu.service")
_EXPECTED = (Refused, QuotaError, HubError, DatabaseError)


def status_of(error: BaseException | None) -> int | None:
    """HTTP's, of what is expected to go wrong."""
    if isinstance(error, Refused | HubError):
        return error.status
    if isinstance(error, QuotaError):
        return 400
    return 503 if isinstance(error, DatabaseError) else None


class ServiceHandler(HubOAuthenticated, web.RequestHandler):
    """scopes: what a user or token must have for this route, all of them, besides access to the service."""

    scopes: ClassVar[tuple[str, ...]] = (READ_SCOPE,)
    _resolving = False

    def initialize(self, manager: Manager, dispatcher: Dispatcher | None) -> None:
        self.manager, self.dispatcher = manager, dispatcher

    def check_hub_user(self, model: Json) -> Json | None:
        """The hub's own check is for access to the service, by any of several scopes; these are needed all."""
        allowed: Json | None = super().check_hub_user(model)
        if allowed is not None and not set(self.scopes) <= set(model["scopes"]):
            raise UserNotAllowed(model)
        return allowed

    def set_default_headers(self) -> None:
        # the hub's stylesheet has its ticks and arrows as data
        sources = "default-src 'self'; img-src 'self' data:"
        self.set_header("Content-Security-Policy", f"{sources}; frame-ancestors 'none'; form-action 'self'")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """Only for a request that a token has let in: a page of another user's server can set any header."""
        if "Authorization" in self.request.headers and not self._resolving:
            _ = self.current_user
        super().check_xsrf_cookie()

    def get_current_user(self) -> Json | None:
        if self._resolving:  # looking at a cookie asks for the check above, and that, for a new token, who asks
            return None
        self._resolving = True
        user: Json | None = super().get_current_user()
        return user

    @property
    def queue(self) -> Dispatcher:
        """Raises Refused."""
        if self.dispatcher is None:
            raise Refused(404, "this hub has no queue")
        return self.dispatcher

    async def remove(self, user: str, server: str) -> None:
        """Out of the queue, by an admin; noted. Raises Refused."""
        stage = await self.queue.stage(user, server)
        async with self.manager.noted(self.actor, f"{user}/{server}", "queue", str(stage), "removed"):
            await self.queue.remove(user, server)

    @property
    def actor(self) -> str:
        return str(self.current_user["name"])

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        status = status_of(kwargs.get("exc_info", (None, None, None))[1])
        super().send_error(status or status_code, **kwargs)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, DatabaseError):
            log.error("%s", value)
        elif not isinstance(value, _EXPECTED):
            super().log_exception(typ, value, tb)

    def words_of(self, **kwargs: Any) -> str:
        """What went wrong, for the one who asked; the database's own words are for the log."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, DatabaseError):
            return "The database with the quotas does not answer now, so this was not done. Try again later."
        if isinstance(error, _EXPECTED):
            return str(error)
        own = isinstance(error, web.HTTPError) and error.status_code < 500 and error.log_message
        return str(own or self._reason)
