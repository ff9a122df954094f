"""What goes wrong on the way to a slice, in words for the hub's pages."""

from __future__ import annotations

from tornado import web

DAEMON_AWAY = "The GPU service of this hub does not answer now: start without a GPU, or try again later."
DAEMON_AWAY_FORM = "The GPU service of this hub does not answer now. You can start without a GPU, or try again later."
NO_GPU_FOR, START_WITHOUT = "No GPU for this server: ", " You can start without a GPU."
DATABASE_AWAY = "The GPU quotas of this hub can't be read now: start without a GPU, or try again later."


class Elsewhere(web.HTTPError):
    """The form is taken, and the answer is another page: the hub sends the headers of what options_from_form raises."""

    def __init__(self, url: str, message: str) -> None:
        super().__init__(303, message)
        self.headers = {"Location": url}
        self.jupyterhub_message = message


def spawn_error(status: int, message: str) -> web.HTTPError:
    """An error that every page and API of the hub shows in these words."""
    error = web.HTTPError(status, message)
    error.jupyterhub_message = message  # type: ignore[attr-defined]
    return error
