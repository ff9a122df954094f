"""`jupyter vgpu top`: what is shared and who holds what, live."""

from __future__ import annotations

import json
import os
import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..client import Client, DaemonAway
from .status import as_json, ask, draw

_OK, _USAGE = 0, 2


def stream(client: Client, inside: bool, interval: float) -> int:
    """Print what `status --json` does, a line each `interval` seconds, until Ctrl-C or until nobody reads it.

    While the daemon is away a line has `error`. Returns the exit code.
    """
    said = as_json(ask(client, inside), inside)  # what is wrong at the start is said, and ends it
    try:
        while True:
            print(json.dumps(said), flush=True)
            time.sleep(interval)
            try:
                said = as_json(ask(client, inside), inside)
            except DaemonAway as error:
                said = {"error": str(error)}
    except KeyboardInterrupt:
        return _OK
    except BrokenPipeError:
        # else Python complains of what it can't write at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OK


def watch(client: Client, inside: bool, interval: float) -> int:
    """Draw anew every `interval` seconds until Ctrl-C. Returns the exit code."""
    if not sys.stdout.isatty():
        print(
            "jupyter vgpu top: this is no terminal: run it in one, or take --json, or once 'status --json'",
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
