"""vgpud's HTTP API: the admin's, and the small one that each tenant has on its own socket."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, ClassVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket

from ..api import Json, Refused, json_object
from ..quotas import Quota, QuotaError
from .boards import Boards
from .manager import Manager
from .views import of_maintenance

log = logging.getLogger("vgpud.api")

_BODY_MAX = 64 << 10


class ApiHandler(web.RequestHandler):
    """JSON in, JSON out, and errors as {"error": words}."""

    def initialize(self, manager: Manager) -> None:
        self.manager = manager

    def body(self, allowed: dict[str, type | tuple[type, ...]]) -> Json:
        """The request's object, holding none but the allowed keys. Raises Refused."""
        data = json_object(self.request.body)
        for key, value in data.items():
            if key not in allowed:
                raise Refused(400, f"unknown field {key!r}: allowed are {', '.join(allowed)}")
            if value is not None and not isinstance(value, allowed[key]):
                raise Refused(400, f"{key}={value!r} has the wrong type")
        return {key: value for key, value in data.items() if value is not None}

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        message = str(error) if isinstance(error, Refused | QuotaError) else self._reason
        self.finish({"error": message})

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, Refused | QuotaError):
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, Refused):
            status_code = error.status
        elif isinstance(error, QuotaError):
            status_code = 400
        super().send_error(status_code, **kwargs)


_LIMIT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "memory": (int, str, float),
    "cores": (int, float, str),
    "policy": str,
}
_QUOTA_FIELDS = {**_LIMIT_FIELDS, "model": str, "exclusive": bool}


_CREATE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "gpu": str,
    "owner": int,
    "until_pid": int,
    "ceiling": dict,
    "labels": dict,
}


def _quota_of(data: Json) -> Quota:
    if not set(data) <= set(_LIMIT_FIELDS) or not {"memory", "cores"} <= set(data):
        raise Refused(400, f"ceiling={str(data)[:80]} is no ceiling: give memory, cores and perhaps policy")
    return Quota.parse(**data)


class TenantsHandler(ApiHandler):
    def get(self) -> None:
        self.finish({"tenants": [self.manager.describe(tenant) for tenant in self.manager.tenants.values()]})

    def post(self) -> None:
        data = self.body({"name": str, **_QUOTA_FIELDS, **_CREATE_FIELDS})
        for field in ("name", "memory", "cores"):
            if field not in data:
                raise Refused(400, f"{field} is missing: a tenant has a name, memory and cores")
        quota = Quota.parse(**{field: data[field] for field in _QUOTA_FIELDS if field in data})
        ceiling = data.get("ceiling")
        created = self.manager.create(
            data["name"],
            quota,
            gpu=data.get("gpu"),
            owner=data.get("owner"),
            until_pid=data.get("until_pid", 0),
            ceiling=_quota_of(ceiling) if ceiling else None,
            labels=data.get("labels", {}),
        )
        self.set_status(201)
        self.finish(created)


class TenantHandler(ApiHandler):
    def get(self, key: str) -> None:
        self.finish(self.manager.describe(self.manager.find(key)))

    def patch(self, key: str) -> None:
        old = self.manager.find(key).quota
        quota = Quota.parse(**{**old.as_json(), **self.body(_QUOTA_FIELDS)})
        self.finish(self.manager.resize(key, quota))

    def delete(self, key: str) -> None:
        self.manager.remove(key)
        self.set_status(204)


class LabelsHandler(ApiHandler):
    """PATCH {name: text}; null takes a label away."""

    def patch(self, key: str) -> None:
        self.finish(self.manager.label(key, json_object(self.request.body)))


class _OfBoards(ApiHandler):
    def initialize(self, manager: Manager, boards: Boards | None = None) -> None:
        super().initialize(manager)
        assert boards  # noqa: S101 (as the routes say)
        self.boards = boards


class BoardsHandler(_OfBoards):
    """POST {name, labels}: a notice board for a server without a slice."""

    def get(self) -> None:
        self.finish({"boards": [self.boards.describe(board) for board in self.boards.boards.values()]})

    def post(self) -> None:
        data = self.body({"name": str, "labels": dict})
        if "name" not in data:
            raise Refused(400, "name is missing: a notice board has one")
        self.set_status(201)
        self.finish(self.boards.create(data["name"], data.get("labels", {})))


class BoardHandler(_OfBoards):
    def get(self, key: str) -> None:
        self.finish(self.boards.describe(self.boards.find(key)))

    def delete(self, key: str) -> None:
        self.boards.remove(key)
        self.set_status(204)


class BoardLabelsHandler(_OfBoards):
    """PATCH {name: text}; null takes a label away."""

    def patch(self, key: str) -> None:
        self.finish(self.boards.label(key, json_object(self.request.body)))


class GpusHandler(ApiHandler):
    """GET. With `?tenant=NAME` also `tenants`: the one of that name, if there is one."""

    def get(self) -> None:
        said = of_maintenance(self.manager.maintenance)
        found: Json = {"gpus": self.manager.describe_gpus(), "maintenance": said}
        if name := self.get_query_argument("tenant", None, strip=False):
            named = [tenant for tenant in self.manager.tenants.values() if tenant.name == name]
            found["tenants"] = [self.manager.describe(tenant) for tenant in named]
        self.finish(found)


class MaintenanceHandler(ApiHandler):
    """PUT {message, closed}; DELETE: it is over. GET: null where there is none."""

    def get(self) -> None:
        self.finish({"maintenance": of_maintenance(self.manager.maintenance)})

    def put(self) -> None:
        data = self.body({"message": str, "closed": bool})
        if "message" not in data:
            raise Refused(400, "message is missing: say what everybody with a slice here is to read")
        self.manager.set_maintenance(data["message"], data.get("closed", False))
        self.get()

    def delete(self) -> None:
        self.manager.end_maintenance()
        self.set_status(204)


class HealthHandler(ApiHandler):
    def get(self) -> None:
        self.finish(self.manager.health())


class MetricsHandler(ApiHandler):
    registry: ClassVar[CollectorRegistry]

    def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(generate_latest(self.registry))


class NotFoundHandler(ApiHandler):
    def prepare(self) -> None:
        raise Refused(404, f"nothing at {self.request.path}")


class SliceHandler(ApiHandler):
    """What a tenant may know: itself."""

    def initialize(self, manager: Manager, tenant_id: str = "") -> None:
        super().initialize(manager)
        self.tenant_id = tenant_id

    def get(self) -> None:
        self.finish(self.manager.describe(self.manager.find(self.tenant_id)))


class NoticesHandler(_OfBoards):
    """What who looks at a board may know: what is said on it."""

    def initialize(self, manager: Manager, boards: Boards | None = None, board_id: str = "") -> None:
        super().initialize(manager, boards)
        self.board_id = board_id

    def get(self) -> None:
        self.finish({"labels": dict(self.boards.find(self.board_id).labels)})


def admin_application(manager: Manager, boards: Boards, registry: CollectorRegistry) -> web.Application:
    """Everything; its socket is for the node's admin alone."""
    MetricsHandler.registry = registry
    arguments = {"manager": manager}
    of_boards = {"manager": manager, "boards": boards}
    routes: list[tuple[str, Callable[..., Any], Json]] = [
        (r"/api/tenants", TenantsHandler, arguments),
        (r"/api/tenants/([^/]+)/labels", LabelsHandler, arguments),
        (r"/api/tenants/(.+)", TenantHandler, arguments),
        (r"/api/boards", BoardsHandler, of_boards),
        (r"/api/boards/([^/]+)/labels", BoardLabelsHandler, of_boards),
        (r"/api/boards/(.+)", BoardHandler, of_boards),
        (r"/api/gpus", GpusHandler, arguments),
        (r"/api/maintenance", MaintenanceHandler, arguments),
        (r"/api/health", HealthHandler, arguments),
        (r"/metrics", MetricsHandler, arguments),
    ]
    return _application(routes, arguments)


def metrics_application(manager: Manager, registry: CollectorRegistry) -> web.Application:
    """The metrics alone, for Prometheus."""
    MetricsHandler.registry = registry
    arguments = {"manager": manager}
    return _application([(r"/metrics", MetricsHandler, arguments)], arguments)


def tenant_application(manager: Manager, tenant_id: str) -> web.Application:
    """One tenant's view of itself."""
    arguments = {"manager": manager}
    return _application([(r"/api/slice", SliceHandler, arguments | {"tenant_id": tenant_id})], arguments)


def board_application(manager: Manager, boards: Boards, board_id: str) -> web.Application:
    """What is said on one notice board."""
    arguments = {"manager": manager}
    of_board = {"manager": manager, "boards": boards, "board_id": board_id}
    return _application([(r"/api/notices", NoticesHandler, of_board)], arguments)


def _application(routes: list[tuple[str, Callable[..., Any], Json]], arguments: Json) -> web.Application:
    return web.Application(
        routes,
        default_handler_class=NotFoundHandler,
        default_handler_args=arguments,
        log_function=lambda handler: log.debug(
            "%s %s %d", handler.request.method, handler.request.uri, handler.get_status()
        ),
    )


def serve(application: web.Application, path: str, mode: int) -> Callable[[], None]:
    """Serve on a Unix socket; returns how to stop."""
    server = _server(application)
    server.add_socket(bind_unix_socket(path, mode=mode))
    return server.stop


def serve_tcp(
    application: web.Application, sockets: list[socket.socket], tls: ssl.SSLContext | None = None
) -> Callable[[], None]:
    """Serve on addresses; returns how to stop."""
    server = _server(application, tls)
    server.add_sockets(sockets)
    return server.stop


def _server(application: web.Application, tls: ssl.SSLContext | None = None) -> HTTPServer:
    return HTTPServer(
        application, max_body_size=_BODY_MAX, idle_connection_timeout=60, body_timeout=10, ssl_options=tls
    )
