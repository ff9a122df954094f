"""Talk to vgpud: JSON over HTTP over a Unix socket.

The daemon's admin socket serves hub, CLI and benchmarks; a tenant's own socket serves what runs in the slice.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]

MAINTENANCE_PATH = "/api/maintenance"


def tenant_path(key: str) -> str:
    """Of a tenant in the daemon's API, by id or name; a name may hold anything."""
    return f"/api/tenants/{quote(key, safe='')}"


class DaemonError(RuntimeError):
    """vgpud said no. `status` is HTTP's; the message is for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DaemonAway(DaemonError):
    """Nobody answers on the socket."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(
            503, f"the GPU node daemon does not answer at {path} ({error}): start it with 'jupyter vgpu node'"
        )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """One daemon, reached through `path`. Every call is a connection of its own, so it may be shared freely."""

    def __init__(self, path: Path | str, timeout: float = 10) -> None:
        self.path = Path(path)
        self.timeout = timeout

    def request(self, method: str, url: str, body: Json | None = None) -> Any:
        """Raises DaemonAway, or DaemonError with what the daemon said."""
        connection = _UnixConnection(self.path, self.timeout)
        try:
            connection.request(
                method, url, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            status, data = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise DaemonAway(self.path, error) from error
        finally:
            connection.close()
        answer = json.loads(data) if data else None
        if status >= 400:
            message = answer.get("error") if isinstance(answer, dict) else None
            raise DaemonError(status, message or f"vgpud answered {status} to {method} {url}")
        return answer

    async def arequest(self, method: str, url: str, body: Json | None = None) -> Any:
        """`request` off the event loop."""
        return await asyncio.to_thread(self.request, method, url, body)
