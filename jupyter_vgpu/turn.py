"""Where a user's server stands in the hub's queue for a GPU, as that user's servers are told it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .api import LABEL_LENGTH

LABEL = "jupyterhub_queue"
"""What the hub's service writes on its users' slices and notice boards, for the servers inside."""
NAME_MAX, WORDS_MAX = 40, 120


class Stage(StrEnum):
    """`waiting`; `called`: its turn is now, and its room is kept; `ended`: without a GPU, the words say why."""

    WAITING = "waiting"
    CALLED = "called"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Turn:
    """server: which one waits; the default one's name is empty. number: 1 is next; 0: it waits no more. minutes: half
    of such waits are shorter; None: that can't be told. until: seconds since 1970, so long its room is kept while it
    runs without a GPU; None: it is being started. words: why it got none."""

    server: str
    stage: Stage
    number: int = 0
    minutes: int | None = None
    until: float | None = None
    words: str = ""

    def as_label(self) -> str:
        """For `told`. Names and words that are too long for a label are cut."""
        said = {
            "server": cut(self.server, NAME_MAX),
            "stage": str(self.stage),
            "number": self.number,
            "minutes": self.minutes,
            "until": self.until,
            "words": cut(self.words, WORDS_MAX),
        }
        while len(label := json.dumps(said, ensure_ascii=False)) > LABEL_LENGTH:
            longest = "words" if said["words"] else "server"  # full of what JSON has to escape
            text = str(said[longest])
            said[longest] = cut(text, len(text) - 1) if len(text) > 1 else ""
        return label


def cut(text: str, most: int) -> str:
    """So many characters of it; what is cut shows that it is."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def told(labels: Mapping[str, str]) -> dict[str, Any] | None:
    """What `as_label` wrote; None: nothing waits, or not in a way that this version knows. Fields are a Turn's."""
    try:
        said = json.loads(labels[LABEL])
        return {
            "server": str(said["server"]),
            "stage": str(Stage(said["stage"])),
            "number": int(said["number"]),
            "minutes": None if said["minutes"] is None else int(said["minutes"]),
            "until": None if said["until"] is None else float(said["until"]),
            "words": str(said["words"]),
        }
    except (KeyError, TypeError, ValueError):
        return None
