"""Notice boards: by them a server without a slice hears what its hub has to say, such as whose turn it is."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ..api import Json, Refused
from ..paths import TENANT_SOCKET
from .labels import changed, check_labels, check_name
from .store import Board, Store, timestamp

log = logging.getLogger("vgpud")

BOARDS_MAX = 4096


class Boards:
    """The one place that changes boards. serve(id, socket path) opens a board's own API and returns how to close it."""

    def __init__(self, run_dir: Path, store: Store, serve: Callable[[str, Path], Callable[[], None]]) -> None:
        self._dir = run_dir / "boards"
        # as with tenants: names in here are secrets
        self._dir.mkdir(parents=True, exist_ok=True)
        self._dir.chmod(0o711)
        self._store, self._serve = store, serve
        self.boards: dict[str, Board] = {}
        self._stops: dict[str, Callable[[], None]] = {}

    def start(self) -> None:
        for board in self._store.boards():
            self.boards[board.id] = board
            try:
                self._open(board)
            except OSError:  # the others are served
                log.exception("the notice board of %s can't be served", board.name)
        for stray in self._dir.iterdir():
            if stray.name not in self.boards:
                shutil.rmtree(stray, ignore_errors=True)

    def stop(self) -> None:
        for stop in self._stops.values():
            stop()

    def find(self, key: str) -> Board:
        """By id or by name."""
        for board in self.boards.values():
            if key in (board.id, board.name):
                return board
        raise Refused(404, f"no notice board {key!r} on this node")

    def create(self, name: str, labels: Mapping[str, str]) -> Json:
        """One of that name from before goes: its server has ended."""
        check_name(name, "a notice board")
        check_labels(labels)
        for old in [board for board in self.boards.values() if board.name == name]:
            self.remove(old.id)
        if len(self.boards) >= BOARDS_MAX:
            raise Refused(409, f"this node has {BOARDS_MAX} notice boards, the most that it can hold")
        board = Board(secrets.token_hex(16), name, timestamp(), labels)
        self._store.add_board(board)
        self.boards[board.id] = board
        try:
            self._open(board)
        except BaseException:
            self.remove(board.id)
            raise
        return self.describe(board) | {"directory": str(self._dir / board.id)}

    def label(self, key: str, changes: Mapping[str, str | None]) -> Json:
        """Add or change what is said on it; None takes a label away."""
        board = self.find(key)
        board = replace(board, labels=changed(board.labels, changes))
        self._store.set_board_labels(board.id, board.labels)
        self.boards[board.id] = board
        return self.describe(board)

    def remove(self, key: str) -> None:
        board = self.find(key)
        self._store.remove_board(board.id)
        del self.boards[board.id]
        if stop := self._stops.pop(board.id, None):
            stop()
        shutil.rmtree(self._dir / board.id, ignore_errors=True)

    def describe(self, board: Board) -> Json:
        return {"id": board.id, "name": board.name, "created": board.created, "labels": dict(board.labels)}

    def _open(self, board: Board) -> None:
        directory = self._dir / board.id
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        self._stops[board.id] = self._serve(board.id, directory / TENANT_SOCKET)
