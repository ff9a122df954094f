"""The hub's REST API, as far as the service may use it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from ..nodes import BOARD_KEY, TENANT_KEY

PAGE = 50
"""The hub does nothing else while it tells of a page: of 50 users with their servers for some 20 ms."""


class HubError(RuntimeError):
    """The hub did not do it; `status` is HTTP's, the message is the hub's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class HubUser:
    """As the hub has it. slices: ids, those of notice boards too, that the user's servers say are theirs.

    unsure: names, as those of slices, of servers that are on their way up or down, or of which the hub does not tell
    what they hold. ready: servers that run.
    """

    name: str
    groups: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HubGroup:
    """As the hub has it. users: names of all members."""

    name: str
    properties: Any
    users: tuple[str, ...]


class HubApi:
    """url: with /hub/api at its end. token: of the service's own role."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url.rstrip("/"), token

    async def users(self, *, active: bool = False) -> list[HubUser]:
        """All, or those with a server."""
        return [_user(user) for user in await self._all("/users", "state=active&" if active else "")]

    async def groups(self) -> list[HubGroup]:
        """All, with their members: who is in which is known without asking for thousands of users."""
        found = await self._all("/groups")
        return [HubGroup(each["name"], each.get("properties"), tuple(each.get("users", ()))) for each in found]

    async def properties(self) -> dict[str, Any]:
        """By group."""
        return {group.name: group.properties for group in await self.groups()}

    async def user(self, name: str) -> HubUser | None:
        """None: the hub has no such user."""
        try:
            return _user(await self._request("GET", f"/users/{quote(name, safe='')}"))
        except HubError as error:
            if error.status == 404:
                return None
            raise

    async def stop(self, user: str, server: str) -> None:
        """Ask the hub to stop a server; it may take a while after this returns."""
        name, whose = quote(server, safe=""), quote(user, safe="")
        await self._request("DELETE", f"/users/{whose}/servers/{name}" if server else f"/users/{whose}/server")

    async def servers(self, user: str) -> dict[str, bool]:
        """A user's servers by name (the default one's is empty): True, it is ready; False, on its way up or down."""
        model = await self._request("GET", f"/users/{quote(user, safe='')}")
        servers = model.get("servers", {}).items()
        return {name: server["ready"] for name, server in servers if server["ready"] or server["pending"]}

    async def start(self, user: str, server: str, options: dict[str, Any]) -> None:
        """Ask the hub to start a server; it may take a while after this returns."""
        name, whose = quote(server, safe=""), quote(user, safe="")
        path = f"/users/{whose}/servers/{name}" if server else f"/users/{whose}/server"
        await self._request("POST", path, options)

    async def _all(self, path: str, query: str = "") -> list[Any]:
        found: list[Any] = []
        offset: int | None = 0
        while offset is not None:
            page = await self._request("GET", f"{path}?{query}limit={PAGE}&offset={offset}")
            found += page["items"]
            after = page["_pagination"]["next"]
            offset = after["offset"] if after else None
        return found

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"token {self._token}", "Accept": "application/jupyterhub-pagination+json"}
        try:
            answer = await AsyncHTTPClient().fetch(
                self._url + path,
                method=method,
                headers=headers,
                request_timeout=30,
                body=None if body is None else json.dumps(body),
            )
        except HTTPClientError as error:
            raise HubError(error.code, _words(error)) from error
        except OSError as error:
            raise HubError(503, f"the hub does not answer ({error})") from error
        return json.loads(answer.body) if answer.body else None


def _user(model: dict[str, Any]) -> HubUser:
    servers = model.get("servers", {})
    states = [each["state"] for each in servers.values() if each.get("state")]
    slices = tuple(state[key] for state in states for key in (TENANT_KEY, BOARD_KEY) if key in state)
    unsettled = [name for name, each in servers.items() if each["pending"] or not each.get("state")]
    unsure = tuple(f"{model['name']}/{name}" for name in unsettled)
    ready = tuple(name for name, each in servers.items() if each["ready"])
    return HubUser(model["name"], tuple(model.get("groups", ())), slices, unsure, ready)


def _words(error: HTTPClientError) -> str:
    try:
        assert error.response  # noqa: S101 (as tornado promises for answers)
        return str(json.loads(error.response.body)["message"])
    except (AssertionError, ValueError, KeyError, TypeError):
        return f"the hub answered {error.code}"
