"""Which handler answers where."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jupyterhub.services.auth import HubOAuthCallbackHandler
from tornado import web
from tornado.log import access_log

from . import exports, pages, rest
from .dispatcher import Dispatcher
from .manager import Manager


def application(
    manager: Manager, dispatcher: Dispatcher | None, prefix: str, hub_prefix: str, cookie_secret: bytes
) -> web.Application:
    """prefix: where the hub's proxy puts the service, with a slash at its end."""
    arguments = {"manager": manager, "dispatcher": dispatcher}
    routes: list[tuple[str, Any]] = [
        (r"", pages.FrontHandler),
        (r"live", pages.LiveHandler),
        (r"edit", pages.EditHandler),
        (r"stop", pages.StopHandler),
        (r"remove", pages.RemoveHandler),
        (r"maintenance", pages.MaintenanceHandler),
        (r"queue", pages.QueueHandler),
        (r"queue/live", pages.QueueLiveHandler),
        (r"queue/leave", pages.LeaveHandler),
        (r"audit", pages.AuditHandler),
        (r"audit\.csv", exports.AuditCsvHandler),
        (r"users\.csv", exports.UsersCsvHandler),
        (r"metrics", exports.MetricsHandler),
        (r"api/state", rest.StateHandler),
        (r"api/users/([^/]+)/quota", rest.QuotaHandler),
        (r"api/queue", rest.QueueApiHandler),
        (r"api/queue/([^/]+)/(.*)", rest.QueueEntryHandler),
        (r"api/slices/(.+)", rest.SliceHandler),
        (r"api(?:/.*)?", rest.NotFoundHandler),
    ]
    return web.Application(
        [
            *((prefix + path, handler, arguments) for path, handler in routes),
            (prefix + r"health", rest.HealthHandler),
            (prefix + r"oauth_callback", HubOAuthCallbackHandler),
            (prefix + r"static/(.*)", web.StaticFileHandler, {"path": str(Path(__file__).parent / "static")}),
        ],
        default_handler_class=pages.NotFoundHandler,
        default_handler_args=arguments,
        cookie_secret=cookie_secret,
        log_function=_log_request,
        xsrf_cookies=True,
        prefix=prefix,
        hub_prefix=hub_prefix,
    )


def _log_request(handler: web.RequestHandler) -> None:
    """Not of what a page asks by itself every two seconds, and nothing of what only the login may know."""
    status, request = handler.get_status(), handler.request
    if status < 400 and request.path.endswith("/live"):
        return
    where = request.path if request.path.endswith("/oauth_callback") else request.uri
    level = logging.INFO if status < 400 else logging.WARNING if status < 500 else logging.ERROR
    access_log.log(
        level, "%d %s %s (%s) %.1f ms", status, request.method, where, request.remote_ip, 1000 * request.request_time()
    )
