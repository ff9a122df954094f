"""`jupyter vgpu top`: what is shared and who holds what, live."""

from __future__ import annotations

import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..client import Client, DaemonAway
from .status import ask, draw

_OK, _USAGE = 0, 2


def watch(client: Client, inside: bool, interval: float) -> int:
    """Draw anew every `interval` seconds until Ctrl-C. Returns the exit code."""
    if not sys.stdout.isatty():
        print(
            "jupyter vgpu top: this is no terminal: run it in one, or take 'jupyter vgpu status --json' for scripts",
            file=sys.stderr,
        )
        return _USAGE
    console = Console()
    last = draw(ask(client, inside))  # what is wrong at the start is said, and ends it
    with Live(last, console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                try:
                    last = draw(ask(client, inside))
                    live.update(last, refresh=True)
                except DaemonAway as error:  # it may be restarting
                    live.update(Group(Text(f"{error}: trying again", style="yellow"), last), refresh=True)
        except KeyboardInterrupt:
            return _OK
