"""The service's pages and its API. Every route names the scope that it needs."""

from __future__ import annotations

import csv
import io
import json
import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, select_autoescape
from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated, UserNotAllowed
from prometheus_client import CONTENT_TYPE_LATEST
from tornado import web

from jupyter_vgpu.api import Json, Refused, json_object
from jupyter_vgpu.client import DaemonError
from jupyter_vgpu.quotas import QuotaError, exact_bytes, format_bytes, format_percent

from ..choices import describe
from ..database import DatabaseError
from ..rules import FIELDS, Rule
from .dispatcher import Dispatcher, Standing
from .hub import HubError
from .manager import Manager, Person
from .metrics import exposition
from .settings import READ_SCOPE, WRITE_SCOPE
from .words import format_duration, say_when

log = logging.getLogger("vgpu.service")

AUDIT_LINES = 200
PAGE = 100
"""Users on a page."""
_EXPECTED = (Refused, QuotaError, HubError, DatabaseError)

_templates = Environment(
    loader=PackageLoader("jupyter_vgpu_spawner.service"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {
    "bytes": format_bytes,
    "exact": exact_bytes,
    "percent": format_percent,
    "slice": describe,
    "duration": format_duration,
    "sentence": say_when,
}


def _status_of(error: BaseException | None) -> int | None:
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
        self.set_header("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; form-action 'self'")
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

    async def leave(self, user: str, server: str) -> None:
        """Out of the queue. Raises Refused."""
        if self.dispatcher is None:
            raise Refused(404, "this hub has no queue")
        await self.dispatcher.leave(user, server)

    async def remove(self, user: str, server: str) -> None:
        """As an admin, noted. Raises Refused."""
        async with self.manager.noted(self.actor, f"{user}/{server}", "queue", "waiting", "removed"):
            await self.leave(user, server)

    @property
    def actor(self) -> str:
        return str(self.current_user["name"])

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        status = _status_of(kwargs.get("exc_info", (None, None, None))[1])
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


# --- pages ---


class PageHandler(ServiceHandler):
    """HTML that works without JavaScript."""

    def page(self, template: str, **values: Any) -> None:
        scopes = (self.current_user or {}).get("scopes", ())
        self.finish(
            _templates.get_template(template).render(
                base=self.settings["prefix"],
                hub=self.settings["hub_prefix"],
                user=self.current_user,
                may_write=WRITE_SCOPE in scopes,
                may_read=READ_SCOPE in scopes,
                has_queue=self.dispatcher is not None,
                xsrf=self.xsrf_form_html(),
                xsrf_token=self.xsrf_token.decode(),
                **values,
            )
        )

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.page("error.html", status=status_code, words=self.words_of(**kwargs))


class AdminHandler(PageHandler):
    """GPUs and users. ?q=: users whose name or group has it. ?page=: which PAGE of them, from 1."""

    @web.authenticated
    async def get(self) -> None:
        await self.show()

    async def show(self, message: str = "", troubles: Iterable[str] = ()) -> None:
        state = await self.manager.state()
        wanted = self.get_query_argument("q", "").strip()
        people = [person for person in state.people if _is_wanted(person, wanted)]
        pages = max(1, -(-len(people) // PAGE))
        number = self.get_query_argument("page", "1")
        at = min(max(1, int(number)), pages) if number.isdecimal() and len(number) < 9 else 1
        queue, queue_troubles = await self.queue()
        here = people[(at - 1) * PAGE : at * PAGE]
        try:
            trends = await self.manager.trends(person.name for person in here)
        except DatabaseError:  # the state has said so
            trends = {}
        self.page(
            "admin.html",
            state=state,
            queue=queue,
            now=time.time(),
            found=len(people),
            people=here,
            trends=trends,
            most=max((max(days) for days in trends.values()), default=0),
            at=at,
            pages=pages,
            q=wanted,
            message=message,
            troubles=[*troubles, *state.troubles, *queue_troubles],
            window=self.manager.settings.window,
            spent=self.manager.spent,
        )

    async def queue(self) -> tuple[list[Standing], list[str]]:
        """Who waits; a part that does not answer leaves its words."""
        try:
            return (await self.dispatcher.standings() if self.dispatcher else []), []
        except (DaemonError, HubError, DatabaseError) as error:
            log.error("%s", error)
            return [], ["The queue is not known now."]


def _is_wanted(person: Person, wanted: str) -> bool:
    return not wanted or any(wanted.lower() in text.lower() for text in (person.name, *person.groups))


class LiveHandler(PageHandler):
    """The part of the admin page that changes by itself: GPUs and their slices."""

    @web.authenticated
    async def get(self) -> None:
        self.page("gpus.html", state=await self.manager.node_state())


class FormHandler(AdminHandler):
    """A form of the admin page."""

    scopes = (READ_SCOPE, WRITE_SCOPE)

    @web.authenticated
    def get(self) -> None:
        self.redirect(self.settings["prefix"])  # where a reload of the answer to a form goes


class EditHandler(FormHandler):
    """A user's quota."""

    @web.authenticated
    async def post(self) -> None:
        user = self.get_body_argument("user")
        try:
            rule = Rule.parse({name: self.get_body_argument(name, "") for name in FIELDS})
            seen = self.get_body_argument("expected", "")
            expected = Rule.parse(json.loads(seen)) if seen else None
            troubles = await self.manager.set_rule(user, rule, self.actor, expected)
        except (Refused, HubError, ValueError) as error:  # a QuotaError is a ValueError
            self.set_status(_status_of(error) or 400)
            await self.show(troubles=[f"Nothing was changed: {error}"])
            return
        await self.show(message=f"The quota of {user} is changed.", troubles=troubles)


class MaintenanceHandler(FormHandler):
    """What everybody with a slice is told; an empty message ends it."""

    @web.authenticated
    async def post(self) -> None:
        message, closed = self.get_body_argument("message", ""), bool(self.get_body_argument("closed", ""))
        try:
            await self.manager.set_maintenance(message, closed, self.actor)
        except Refused as error:
            self.set_status(error.status)
            await self.show(troubles=[f"Nothing was changed: {error}"])
            return
        await self.show(message="Everybody with a slice is told." if message.strip() else "The maintenance is over.")


class StopHandler(FormHandler):
    """The button beside a slice."""

    @web.authenticated
    async def post(self) -> None:
        name = self.get_body_argument("server")
        try:
            await self.manager.stop(name, self.actor)
        except (HubError, Refused) as error:
            self.set_status(error.status)
            await self.show(troubles=[f"{name[:80]} was not stopped: {error}"])
            return
        await self.show(message=f"The server {name} is being stopped.")


class RemoveHandler(FormHandler):
    """The button beside a server in the queue."""

    @web.authenticated
    async def post(self) -> None:
        user, server = self.get_body_argument("user"), self.get_body_argument("server", "")
        try:
            await self.remove(user, server)
        except Refused as error:
            self.set_status(error.status)
            await self.show(troubles=[str(error)])
            return
        await self.show(message=f"{user}/{server} waits no more.")


class QueueHandler(PageHandler):
    """A user's own place in the queue; nobody sees another's here."""

    scopes = ()

    @web.authenticated
    async def get(self) -> None:
        await self.show("queue.html")

    async def show(self, template: str, message: str = "") -> None:
        trouble, standings, servers = "", [], {}
        try:
            if self.dispatcher:
                standings = await self.dispatcher.standings(self.actor)
                servers = {} if standings else await self.dispatcher.servers(self.actor)
        except (DaemonError, HubError, DatabaseError) as error:
            log.error("%s", error)
            trouble = "Your place is not known now: something that the queue needs does not answer. It is not lost."
        self.page(template, standings=standings, servers=servers, trouble=trouble, message=message, now=time.time())


class QueueLiveHandler(QueueHandler):
    """The part of the page that changes by itself."""

    @web.authenticated
    async def get(self) -> None:
        await self.show("standings.html")


class LeaveHandler(QueueHandler):
    """The user's own button: whose server it is, the login says."""

    @web.authenticated
    async def post(self) -> None:
        try:
            await self.leave(self.actor, self.get_body_argument("server", ""))
        except Refused as error:
            self.set_status(error.status)
            await self.show("queue.html", str(error))
            return
        await self.show("queue.html", "You wait no more.")

    @web.authenticated
    def get(self) -> None:
        self.redirect(self.settings["prefix"] + "queue")


class AuditHandler(PageHandler):
    """The newest lines of the audit log."""

    @web.authenticated
    async def get(self) -> None:
        self.page("audit.html", changes=await self.manager.changes(AUDIT_LINES), most=AUDIT_LINES)


# --- what other programs read ---


class TextHandler(ServiceHandler):
    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self.words_of(**kwargs))


class CsvHandler(TextHandler):
    def csv(self, name: str, rows: Iterable[Iterable[object]]) -> None:
        out = io.StringIO()
        csv.writer(out).writerows([as_cell(cell) for cell in row] for row in rows)
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')
        self.finish(out.getvalue())


def as_cell(cell: object) -> str:
    """A name that begins like a formula must not become one in somebody's spreadsheet."""
    text = "" if cell is None else str(cell)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


class AuditCsvHandler(CsvHandler):
    @web.authenticated
    async def get(self) -> None:
        rows = [(c.at.isoformat(), c.actor, c.subject, c.field, c.old, c.new) for c in await self.manager.changes()]
        self.csv("vgpu-audit.csv", [("time", "who", "whose", "what", "from", "to"), *rows])


class UsersCsvHandler(CsvHandler):
    @web.authenticated
    async def get(self) -> None:
        state = await self.manager.state()
        if state.is_partial:  # zeros that mean "not known" would be billed
            raise Refused(503, f"The table can't be made now: {'; '.join(state.troubles)}")
        rows = [
            (
                person.name,
                " ".join(person.groups),
                *_quota_cells(person),
                len(person.tenants),
                f"{person.spent.held:.3f}",
                f"{person.spent.used:.3f}",
            )
            for person in state.people
        ]
        head = ("user", "groups", "memory", "cores", "policy", "hours", "servers", "hours_held", "hours_used")
        self.csv("vgpu-users.csv", [head, *rows])


def _quota_cells(person: Person) -> tuple[object, ...]:
    entitlement = person.entitlement
    if entitlement is None:
        return (person.rule.memory, person.rule.cores, person.rule.policy, person.rule.hours)
    quota = entitlement.quota
    return (*((quota.memory, quota.cores, quota.policy) if quota else (0, 0, "")), entitlement.hours)


class MetricsHandler(TextHandler):
    """For Prometheus, with a token that has the scope."""

    @web.authenticated
    async def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        since = None
        try:
            since = await self.dispatcher.since() if self.dispatcher else None
        except DatabaseError as error:
            log.error("%s", error)
        self.finish(exposition(await self.manager.state(), since))


# --- API ---


class ApiHandler(ServiceHandler):
    """JSON in, JSON out, and errors as {"error": words}."""

    def get_login_url(self) -> str:
        raise web.HTTPError(403, "a token with the scope of this route is needed, or a login on the admin page")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.finish({"error": self.words_of(**kwargs)})


class StateHandler(ApiHandler):
    @web.authenticated
    async def get(self) -> None:
        state = await self.manager.state()
        users = [_person(person) for person in state.people]
        self.finish({"gpus": state.gpus, "users": users, "troubles": state.troubles})


def _person(person: Person) -> Json:
    entitlement = person.entitlement
    return {
        "name": person.name,
        "groups": list(person.groups),
        "rule": person.rule.as_json(),
        "quota": entitlement.quota.as_json() if entitlement and entitlement.quota else None,
        "hours": {
            "allowed": entitlement.hours if entitlement else person.rule.hours,
            "held": person.spent.held,
            "used": person.spent.used,
        },
        "servers": person.tenants,
    }


class QuotaHandler(ApiHandler):
    """PUT: {memory, cores, policy, slices, hours}, each or none; what is not in it is not said. DELETE: nothing is."""

    scopes = (READ_SCOPE, WRITE_SCOPE)

    @web.authenticated
    async def put(self, user: str) -> None:
        rule = Rule.parse(json_object(self.request.body))
        self.finish({"rule": rule.as_json(), "troubles": await self.manager.set_rule(user, rule, self.actor)})

    @web.authenticated
    async def delete(self, user: str) -> None:
        self.finish({"rule": {}, "troubles": await self.manager.set_rule(user, Rule(), self.actor)})


class SliceHandler(ApiHandler):
    """One running slice, by its server's name: PATCH {memory, cores, policy}; DELETE stops the server."""

    scopes = (READ_SCOPE, WRITE_SCOPE)

    @web.authenticated
    async def patch(self, name: str) -> None:
        self.finish(await self.manager.resize(name, json_object(self.request.body), self.actor))

    @web.authenticated
    async def delete(self, name: str) -> None:
        await self.manager.stop(name, self.actor)
        self.set_status(202)


class QueueApiHandler(ApiHandler):
    """Everybody in the queue: first who is called, then who is next."""

    scopes = (READ_SCOPE,)

    @web.authenticated
    async def get(self) -> None:
        standings = await self.dispatcher.standings() if self.dispatcher else []
        self.finish({"queue": [_standing(each) for each in standings]})


class QueueEntryHandler(ApiHandler):
    """One server in the queue, by its user and its name: DELETE takes it out."""

    scopes = (READ_SCOPE, WRITE_SCOPE)

    @web.authenticated
    async def delete(self, user: str, server: str) -> None:
        await self.remove(user, server)
        self.set_status(204)


def _standing(standing: Standing) -> Json:
    entry, forecast = standing.entry, standing.forecast
    return {
        "user": entry.waiting.user,
        "server": entry.waiting.server,
        "quota": entry.waiting.quota.as_json(),
        "since": datetime.fromtimestamp(entry.waiting.since, UTC).isoformat(timespec="seconds"),
        "stage": str(entry.stage),
        "words": entry.words,
        "number": standing.number,
        "possible": standing.is_possible,
        "seconds": {"middle": forecast.middle, "late": forecast.late} if forecast else None,
    }


class NotFoundHandler(PageHandler):
    def prepare(self) -> None:
        raise web.HTTPError(404, "There is no such page here.")


class HealthHandler(web.RequestHandler):
    """For the hub and for whoever watches: says nothing but that it runs, and when."""

    def get(self) -> None:
        self.finish({"status": "ok", "time": datetime.now(UTC).isoformat(timespec="seconds")})


def application(
    manager: Manager, dispatcher: Dispatcher | None, prefix: str, hub_prefix: str, cookie_secret: bytes
) -> web.Application:
    """prefix: where the hub's proxy puts the service, with a slash at its end."""
    arguments = {"manager": manager, "dispatcher": dispatcher}
    pages: list[tuple[str, Any]] = [
        (r"", AdminHandler),
        (r"live", LiveHandler),
        (r"edit", EditHandler),
        (r"stop", StopHandler),
        (r"remove", RemoveHandler),
        (r"maintenance", MaintenanceHandler),
        (r"queue", QueueHandler),
        (r"queue/live", QueueLiveHandler),
        (r"queue/leave", LeaveHandler),
        (r"audit", AuditHandler),
        (r"audit\.csv", AuditCsvHandler),
        (r"users\.csv", UsersCsvHandler),
        (r"metrics", MetricsHandler),
        (r"api/state", StateHandler),
        (r"api/users/([^/]+)/quota", QuotaHandler),
        (r"api/queue", QueueApiHandler),
        (r"api/queue/([^/]+)/(.*)", QueueEntryHandler),
        (r"api/slices/(.+)", SliceHandler),
    ]
    return web.Application(
        [
            *((prefix + path, handler, arguments) for path, handler in pages),
            (prefix + r"health", HealthHandler),
            (prefix + r"oauth_callback", HubOAuthCallbackHandler),
            (prefix + r"static/(.*)", web.StaticFileHandler, {"path": str(Path(__file__).parent / "static")}),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=arguments,
        cookie_secret=cookie_secret,
        xsrf_cookies=True,
        prefix=prefix,
        hub_prefix=hub_prefix,
    )
