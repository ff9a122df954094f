"""`jupyter vgpu maintenance`: tell everybody who has a slice on this node, and close it for new ones."""

from __future__ import annotations

import json

from ..client import MAINTENANCE_PATH, Client, Json


def set_or_show(client: Client, message: str | None, *, close: bool, over: bool, as_json: bool) -> int:
    """Without a message: show what is told now. Returns the exit code; raises DaemonError."""
    if over:
        client.request("DELETE", MAINTENANCE_PATH)
    elif message is not None:
        client.request("PUT", MAINTENANCE_PATH, {"message": message, "closed": close})
    said = client.request("GET", MAINTENANCE_PATH)["maintenance"]
    print(json.dumps(said) if as_json else describe(said))
    return 0


def describe(said: Json | None) -> str:
    """In a line."""
    if said is None:
        return "no maintenance"
    return f"maintenance: {said['message']}" + (" (no new slices)" if said["closed"] else "")
