"""What vgpud's HTTP API and the hub service's have in common."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]
LABEL_LENGTH = 255
"""The most of a label of a tenant or a board."""


class Refused(Exception):
    """What was asked can't be done; `status` is HTTP's word for why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def json_object(body: bytes) -> Json:
    """A request's object; an empty body is an empty one. Raises Refused."""
    try:
        data = json.loads(body or b"{}")
    except ValueError as error:
        raise Refused(400, f"the request is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise Refused(400, "the request is not a JSON object")
    return data
