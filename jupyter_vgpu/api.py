"""What vgpud's HTTP API and the hub service's have in common."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]
LABEL_LENGTH = 255
"""The most of a label of a tenant or a board."""


MESSAGE_MAX = 110
"""The most that everybody with a slice is told: what a toast of JupyterLab shows whole."""


class Refused(Exception):
    """What was asked can't be done; `status` is HTTP's word for why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def checked_message(message: str) -> str:
    """What is told to everybody with a slice, without blanks around it. Raises Refused."""
    text = message.strip()
    if not text or len(text) > MESSAGE_MAX or not text.isprintable():
        raise Refused(400, f"message={message[:40]!r} tells nobody: give 1 to {MESSAGE_MAX} printable characters")
    return text


def json_object(body: bytes) -> Json:
    """A request's object; an empty body is an empty one. Raises Refused."""
    try:
        data = json.loads(body or b"{}")
    except ValueError as error:
        raise Refused(400, f"the request is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise Refused(400, "the request is not a JSON object")
    return data
