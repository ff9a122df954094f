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


_JOINERS = "\u200c\u200d"
"""Of scripts and emoji that are written joined."""


def checked_message(message: str) -> str:
    """What is told to everybody with a slice, with single blanks between its words. Raises Refused."""
    text = " ".join(message.split())
    if not text.strip(_JOINERS) or len(text) > MESSAGE_MAX:
        raise Refused(
            400, f"message={text[:40]!r} has {len(text)} characters: give 1 to {MESSAGE_MAX}, for a notice's one line"
        )
    if wrong := next((each for each in text if not each.isprintable() and each not in _JOINERS), ""):
        raise Refused(400, f"message={text[:40]!r} has {wrong!r}, which nobody can see: leave it out")
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
