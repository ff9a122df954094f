"""What may be a name, and what a label. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ..api import LABEL_LENGTH, Refused

NAME_MAX = 200
LABELS_MAX = 16


def check_name(name: str, what: str = "a tenant") -> None:
    """Raises Refused."""
    if not name or len(name) > NAME_MAX or not name.isprintable():
        raise Refused(400, f"name={name[:40]!r} can't name {what}: give 1 to {NAME_MAX} printable characters")


def check_labels(labels: Mapping[str, object]) -> None:
    """Raises Refused."""
    texts = [*labels, *labels.values()]
    if len(labels) > LABELS_MAX or not all(isinstance(text, str) and len(text) <= LABEL_LENGTH for text in texts):
        raise Refused(400, f"labels: give up to {LABELS_MAX} texts by name, of up to {LABEL_LENGTH} characters each")


def changed(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """With what is new; None takes a label away. Raises Refused."""
    after = {name: text for name, text in {**labels, **changes}.items() if text is not None}
    check_labels(after)
    return after
