"""Talk to vgpud: JSON over HTTP, over a Unix socket or, to another machine, over TLS.

The daemon's admin API serves hub, CLI and benchmarks; a tenant's own socket serves what runs in the slice.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

Json = dict[str, Any]

MAINTENANCE_PATH, BOARDS_PATH = "/api/maintenance", "/api/boards"
CONNECT_S = 3.0
"""So long another machine has to take a connection: one that is down does not say so."""


def tenant_path(key: str) -> str:
    """Of a tenant in the daemon's API, by id or name; a name may hold anything."""
    return f"/api/tenants/{quote(key, safe='')}"


def gpus_path(tenant: str) -> str:
    """Of the node's GPUs, and with them of a tenant by name, if there is one."""
    return f"/api/gpus?tenant={quote(tenant, safe='')}"


def board_path(key: str) -> str:
    """Of a notice board, by id or name."""
    return f"{BOARDS_PATH}/{quote(key, safe='')}"


class DaemonError(RuntimeError):
    """vgpud said no. `status` is HTTP's; the message is for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DaemonAway(DaemonError):
    """Nobody answers there."""

    def __init__(self, where: str, error: Exception) -> None:
        self.why = error
        hint = ", or see to the certificates" if isinstance(error, ssl.SSLError) else ""
        super().__init__(
            503, f"the GPU node daemon does not answer at {where} ({error}): start it with 'jupyter vgpu node'{hint}"
        )


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of PEM. ca: who is believed. cert, key: who this side is."""

    ca: str
    cert: str
    key: str

    def context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        """Of a side that shows who it is, and talks to nobody who does not. Raises OSError."""
        context = ssl.create_default_context(purpose, cafile=self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.cert, self.key)
        return context


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _TlsConnection(http.client.HTTPSConnection):
    def __init__(self, where: str, timeout: float, context: ssl.SSLContext) -> None:
        parts = urlsplit(where)
        super().__init__(parts.hostname or "", parts.port, timeout=CONNECT_S, context=context)
        self._answer_s = timeout

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._answer_s)


class Client:
    """One daemon, reached at `where`: a socket's path, or `https://host:port` with the `tls` to show.

    Every call is a connection of its own, so it may be shared freely.
    """

    def __init__(self, where: Path | str, timeout: float = 10, tls: Tls | None = None) -> None:
        self.where = str(where)
        self.timeout = timeout
        self._tls = tls

    @cached_property
    def _context(self) -> ssl.SSLContext | None:
        return self._tls.context(ssl.Purpose.SERVER_AUTH) if self._tls else None

    def _connection(self) -> http.client.HTTPConnection:
        if self._context:
            return _TlsConnection(self.where, self.timeout, self._context)
        return _UnixConnection(Path(self.where), self.timeout)

    def request(self, method: str, url: str, body: Json | None = None) -> Any:
        """Raises DaemonAway, or DaemonError with what the daemon said."""
        try:
            connection = self._connection()
        except OSError as error:  # a certificate that can't be read
            raise DaemonAway(self.where, error) from error
        try:
            connection.request(
                method, url, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            status, data = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise DaemonAway(self.where, error) from error
        finally:
            connection.close()
        try:
            answer = json.loads(data) if data else None
        except ValueError as error:  # somebody else is there
            raise DaemonAway(self.where, error) from error
        if status >= 400:
            message = answer.get("error") if isinstance(answer, dict) else None
            raise DaemonError(status, message or f"vgpud answered {status} to {method} {url}")
        return answer

    async def arequest(self, method: str, url: str, body: Json | None = None) -> Any:
        """`request` off the event loop."""
        return await asyncio.to_thread(self.request, method, url, body)
