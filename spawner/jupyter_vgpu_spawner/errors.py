"""What goes wrong on the way to a slice, in words for the hub's pages."""

from __future__ import annotations

import logging
from typing import Any

from tornado import web

DAEMON_AWAY = "The GPU service of this hub does not answer now: start without a GPU, or try again later."
DAEMON_AWAY_FORM = "The GPU service of this hub does not answer now. You can start without a GPU, or try again later."
NO_GPU_FOR, START_WITHOUT = "No GPU for this server: ", " You can start without a GPU."
DATABASE_AWAY = "The GPU quotas of this hub can't be read now: start without a GPU, or try again later."


class Told(web.HTTPError):
    """What every page and API of the hub says in these words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.jupyterhub_message = message


def words_of(error: web.HTTPError) -> str:
    """Ours, or those of a hook of the config's."""
    return str(getattr(error, "jupyterhub_message", "") or error.log_message or error)


class Elsewhere(Told):
    """The form is taken, and the answer is another page: the hub sends the headers of what options_from_form raises."""

    def __init__(self, url: str, message: str) -> None:
        super().__init__(303, message)
        self.headers = {"Location": url}


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, Told) and error.status_code < 500:
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args = "told to a user: %s", (error.jupyterhub_message,)
            record.exc_info = record.exc_text = None
        return True


_QUIET = _Quiet()


def quiet(log: Any) -> None:
    """A line in the hub's log, not an error with a traceback, for what users are told and is no fault of the hub's."""
    getattr(log, "logger", log).addFilter(_QUIET)
