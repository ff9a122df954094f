"""The service's API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tornado import web

from jupyter_vgpu.api import Json, json_object

from ..rules import Rule
from .dispatcher import Standing
from .handler import ServiceHandler
from .manager import Person
from .settings import READ_SCOPE, WRITE_SCOPE


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
        self.finish(
            {"gpus": state.gpus, "users": users, "troubles": [*state.troubles, *state.wrong], "away": state.away}
        )


def _person(person: Person) -> Json:
    entitlement = person.entitlement
    return {
        "name": person.name,
        "groups": list(person.groups),
        "rule": person.rule.as_json(),
        "quota": entitlement.quota.as_json() if entitlement and entitlement.quota else None,
        "gpus": entitlement.gpus if entitlement else person.rule.gpus,
        "slices": entitlement.slices if entitlement else person.rule.slices,
        "hours": {
            "allowed": entitlement.hours if entitlement else person.rule.hours,
            "held": person.spent.held,
            "used": person.spent.used,
        },
        "servers": person.tenants,
    }


class QuotaHandler(ApiHandler):
    """PUT: a rule's fields, each or none; what is not in it is not said. DELETE: nothing is."""

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
        "closed": standing.closed or None,
        "seconds": {"middle": forecast.middle, "late": forecast.late} if forecast else None,
    }


class NotFoundHandler(ApiHandler):
    def prepare(self) -> None:
        raise web.HTTPError(404, "the API has no such path")


class HealthHandler(web.RequestHandler):
    """For the hub and for whoever watches: says nothing but that it runs, and when."""

    def get(self) -> None:
        self.finish({"status": "ok", "time": datetime.now(UTC).isoformat(timespec="seconds")})
