"""What the node daemon serves to its admin alone."""

from __future__ import annotations

import re
from unittest.mock import Mock

from tornado.routing import PathMatches

from jupyter_vgpu.node.handlers import admin_application

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def admin_paths() -> list[str]:
    """One of each of its routes; {} stands for the id of a tenant or a board."""
    rules = admin_application(Mock(), Mock(), Mock()).wildcard_router.rules
    patterns = [rule.matcher.regex.pattern for rule in rules if isinstance(rule.matcher, PathMatches)]
    assert len(patterns) >= 10
    return [re.sub(r"\(.*?\)", "{}", pattern).rstrip("$") for pattern in patterns]


def body_of(method: str) -> dict[str, str] | None:
    """Something that may be sent, and that one of the routes would take."""
    return {"memory": "2G", "message": "by a tenant"} if method in ("POST", "PUT", "PATCH") else None
