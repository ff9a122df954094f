"""The service's pages: HTML that works without JavaScript."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, select_autoescape
from tornado import web

from jupyter_vgpu.api import MESSAGE_MAX, Refused, json_object
from jupyter_vgpu.client import DaemonError
from jupyter_vgpu.quotas import format_bytes, format_percent

from ..choices import describe, name_of
from ..database import DatabaseError
from ..rules import FIELDS, Rule
from . import bars
from .dispatcher import CALL_S, Standing
from .handler import ServiceHandler, status_of
from .hub import HubError, HubUser
from .manager import Person
from .settings import READ_SCOPE, WRITE_SCOPE
from .words import fields_of, format_duration, format_waited, say_value, say_when

log = logging.getLogger("vgpu.service")

AUDIT_LINES = 200
PAGE = 100
"""Users on a page."""
SHOWN = {
    "": "All",
    "slice": "With a slice now",
    "own": "With a quota of their own",
    "low": "With few or no GPU-hours left",
}
_ERROR_MAX = 300
_SAID, _SAID_MAX = "vgpu-said", 2500
"""The cookie that takes what a form did to the page after it; browsers take 4 KB."""

_templates = Environment(
    loader=PackageLoader("jupyter_vgpu_spawner.service"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {
    "bar": bars.draw,
    "bytes": format_bytes,
    "fields": fields_of,
    "gpu_name": name_of,
    "value": say_value,
    "percent": format_percent,
    "slice": describe,
    "duration": format_duration,
    "waited": format_waited,
    "sentence": say_when,
}
_templates.globals |= {"message_max": MESSAGE_MAX, "call_s": CALL_S}


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

    def done(self, path: str, message: str, troubles: Iterable[str] = ()) -> None:
        """After what a form did: to a page that a reload asks for again, and does nothing by it."""
        said = json.dumps([message, list(troubles)])
        if len(said) > _SAID_MAX:
            said = json.dumps([message, ["More did not go as it should: the log says what."]])
        self.set_signed_cookie(_SAID, said, None, path=self.settings["prefix"], httponly=True, samesite="Lax")
        self.redirect(self.settings["prefix"] + path, status=303)

    def said(self) -> tuple[str, list[str]]:
        """What `done` had to say, once: a message, and troubles."""
        found = self.get_signed_cookie(_SAID, max_age_days=1)
        if not found:
            return "", []
        self.clear_cookie(_SAID, path=self.settings["prefix"])
        message, troubles = json.loads(found)
        return str(message), [str(words) for words in troubles]

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.page("error.html", status=status_code, words=self.words_of(**kwargs))


class AdminHandler(PageHandler):
    """GPUs and users.

    ?q=: users whose name or group has it. ?show=: one of SHOWN. ?page=: which PAGE of them, from 1.
    """

    async def show(
        self,
        message: str = "",
        troubles: Iterable[str] = (),
        typed: Mapping[str, Mapping[str, str]] | None = None,
        wrong: tuple[str, str] = ("", ""),
        unsaid: Mapping[str, Any] | None = None,
    ) -> None:
        """typed: by user, what stands in the fields instead of the user's rule. wrong: a user, and the field that is
        none. unsaid: what was to be told everybody: message, closed, node."""
        part = self.part()
        state = await self.manager.page_state(part.take)
        people = part.cut(state.people, self.manager.is_low)
        queue, queue_trouble = await self.who_waits()
        try:
            trends = await self.manager.trends(person.name for person in people)
        except DatabaseError:  # the state has said so
            trends = {}
        self.page(
            "admin.html",
            state=state,
            people=people,
            queue=queue,
            queue_trouble=queue_trouble,
            now=time.time(),
            part=part,
            shown=SHOWN,
            trends=trends,
            most=max((max(days) for days in trends.values()), default=0),
            message=message,
            typed=typed or {},
            wrong=wrong,
            unsaid=unsaid or {},
            troubles=list(dict.fromkeys([*troubles, *state.troubles, *state.wrong])),
            window=self.manager.settings.window,
            spent=self.manager.spent,
        )

    def part(self) -> _Part:
        """Which users are asked for."""
        wanted, show = self.get_query_argument("q", "").strip(), self.get_query_argument("show", "")
        return _Part(wanted, show, self.get_query_argument("page", "1"))

    async def who_waits(self) -> tuple[list[Standing], str]:
        """Who waits; a part that does not answer leaves its words."""
        try:
            return (await self.dispatcher.standings() if self.dispatcher else []), ""
        except (DaemonError, HubError, DatabaseError) as error:
            log.error("%s", error)
            return [], "The queue is not known now."


class FrontHandler(AdminHandler):
    """Where the hub's menu leads everybody: who may not read the admin page is shown the own place in the queue."""

    scopes = ()

    @web.authenticated
    async def get(self) -> None:
        if READ_SCOPE in self.current_user["scopes"]:
            await self.show(*self.said())
        elif self.dispatcher:
            self.redirect(self.settings["prefix"] + "queue")
        else:
            raise web.HTTPError(403)


class _Part:
    """Which users a page shows. found: how many are wanted. at: the number of the page, of `pages`.

    show: one of SHOWN; what is none of them shows all.
    """

    def __init__(self, wanted: str, show: str, number: str) -> None:
        self.wanted, self.show = wanted, show if show in SHOWN else ""
        self.found, self.pages = 0, 1
        self.at = max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1

    def take(self, users: list[HubUser]) -> list[HubUser]:
        """Of all, those of this page; with `show`, which asks for more than names, all of them for `cut`."""
        here = [user for user in users if self._is_wanted(user)]
        return here if self.show else self._page(here)

    def cut(self, people: list[Person], is_low: Callable[[Person], bool]) -> list[Person]:
        """Of those that `take` let pass, those of this page."""
        if self.show == "slice":
            return self._page([person for person in people if person.tenants])
        if self.show == "own":
            return self._page([person for person in people if not person.rule.is_empty])
        if self.show == "low":
            return self._page([person for person in people if is_low(person)])
        return people

    def _page(self, here: list[Any]) -> list[Any]:
        self.found, self.pages = len(here), max(1, -(-len(here) // PAGE))
        self.at = min(self.at, self.pages)
        return here[(self.at - 1) * PAGE : self.at * PAGE]

    def query(self, page: int) -> str:
        """Of a page of the same users."""
        asked = {"q": self.wanted, "show": self.show, "page": "" if page == 1 else str(page)}
        return urlencode({name: value for name, value in asked.items() if value})

    def _is_wanted(self, user: HubUser) -> bool:
        return not self.wanted or any(self.wanted.lower() in text.lower() for text in (user.name, *user.groups))


class LiveHandler(AdminHandler):
    """The parts of the admin page that change by themselves: GPUs with their slices, the queue, and users' servers."""

    @web.authenticated
    async def get(self) -> None:
        await self.tell([])

    @web.authenticated
    async def post(self) -> None:
        """user: whose servers are on the page, each."""
        await self.tell(self.get_body_arguments("user")[:PAGE])

    async def tell(self, users: list[str]) -> None:
        state = await self.manager.node_state()
        queue, trouble = await self.who_waits()
        by_user = state.by_user
        held = {user: by_user.get(user, []) for user in users}
        self.page(
            "live.html", state=state, queue=queue, queue_trouble=trouble, now=time.time(), part=self.part(), held=held
        )


class FormHandler(AdminHandler):
    """A form of the admin page."""

    scopes = (READ_SCOPE, WRITE_SCOPE)

    @web.authenticated
    def get(self) -> None:
        self.redirect(self.settings["prefix"])

    def back(self, message: str, troubles: Iterable[str] = ()) -> None:
        """To the page with the form, of the same users."""
        part = self.part()
        asked = part.query(part.at)
        self.done(f"?{asked}" if asked else "", message, troubles)


class EditHandler(FormHandler):
    """A user's quota."""

    @web.authenticated
    async def post(self) -> None:
        user = self.get_body_argument("user")
        typed = {name: self.get_body_argument(name, "") for name in FIELDS}
        try:
            rule = Rule.parse(typed)
            seen = self.get_body_argument("expected", "")
            expected = Rule.parse(json_object(seen.encode())) if seen else None
            troubles = await self.manager.set_rule(user, rule, self.actor, expected)
        except (Refused, HubError, ValueError) as error:  # a QuotaError is a ValueError
            self.set_status(status_of(error) or 400)
            why = f"Nothing was changed for {user[:80]}: {str(error)[:_ERROR_MAX]}"
            # another's change is to be seen, not written over by a second click
            kept = {} if isinstance(error, Refused) and error.status == 409 else {user: typed}
            field = re.match(r"\w*", str(error))
            await self.show(troubles=[why], typed=kept, wrong=(user, field[0] if field else ""))
            return
        self.back(f"The quota of {user} is changed.", troubles)


class MaintenanceHandler(FormHandler):
    """What everybody with a slice is told; `over` ends it."""

    @web.authenticated
    async def post(self) -> None:
        message, closed = self.get_body_argument("message", ""), bool(self.get_body_argument("closed", ""))
        over, node = bool(self.get_body_argument("over", "")), self.get_body_argument("node", "")
        try:
            if over:
                troubles = await self.manager.end_maintenance(self.actor, node)
            else:
                troubles = await self.manager.set_maintenance(message, closed, self.actor, node)
        except Refused as error:
            self.set_status(error.status)
            unsaid = {"message": message, "closed": closed, "node": node}
            await self.show(troubles=[f"Nothing was changed: {error}"], unsaid=unsaid)
            return
        where = f" on {node}" if node else ""
        told = f"The maintenance{where} is over." if over else f"Everybody with a slice{where} is told."
        self.back(told, [f"But not on {words}" for words in troubles])


class StopHandler(FormHandler):
    """The button beside a slice."""

    @web.authenticated
    async def post(self) -> None:
        name, shown = self.get_body_argument("server"), self.get_body_argument("slice", "")
        try:
            await self.manager.stop(name, self.actor, shown)
        except (HubError, Refused) as error:
            self.set_status(error.status)
            await self.show(troubles=[f"{name[:80]} was not stopped: {error}"])
            return
        self.back(f"The server {name} is being stopped.")


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
        self.back(f"{user}/{server} waits no more.")


class QueueHandler(PageHandler):
    """A user's own place in the queue; nobody sees another's here."""

    scopes = ()

    @web.authenticated
    async def get(self) -> None:
        await self.show("queue.html", self.said()[0])

    async def show(self, template: str, message: str = "") -> None:
        trouble, standings, servers = "", [], {}
        try:
            if self.dispatcher:
                standings = await self.dispatcher.standings(self.actor)
                # who waits looks on for long; who does not goes to the server as soon as it is there
                ask = self.dispatcher.ready if standings else self.dispatcher.servers
                servers = await ask(self.actor)
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
            await self.queue.leave(self.actor, self.get_body_argument("server", ""))
        except Refused as error:
            self.set_status(error.status)
            await self.show("queue.html", str(error))
            return
        self.done("queue", "You wait no more.")

    @web.authenticated
    def get(self) -> None:
        self.redirect(self.settings["prefix"] + "queue")


class AuditHandler(PageHandler):
    """The newest lines of the audit log."""

    @web.authenticated
    async def get(self) -> None:
        self.page("audit.html", changes=await self.manager.changes(AUDIT_LINES), most=AUDIT_LINES)


class NotFoundHandler(PageHandler):
    def prepare(self) -> None:
        raise web.HTTPError(404, "There is no such page here.")
