"""Notice boards of servers without a slice: what is said on one is read there, and nothing else is reached by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.node import Node, wait_until
from support.routes import METHODS, admin_paths, body_of

from jupyter_vgpu.api import Refused
from jupyter_vgpu.client import Client, DaemonAway, DaemonError
from jupyter_vgpu.node import boards as boards_module
from jupyter_vgpu.node.boards import Boards
from jupyter_vgpu.node.store import Store


def refused(node: Node, method: str, url: str, body: Any = None) -> tuple[int, str]:
    with pytest.raises(DaemonError) as error:
        node.client.request(method, url, body)
    return error.value.status, str(error.value)


def pin(node: Node, name: str = "alice/", **labels: str) -> dict[str, Any]:
    board: dict[str, Any] = node.client.request("POST", "/api/boards", {"name": name, "labels": labels})
    return board


def reader(board: dict[str, Any]) -> Client:
    return Client(Path(board["directory"]) / "vgpu.sock")


def test_what_is_said_on_it_is_read_and_survives_kill_9(node: Node) -> None:
    board, other = pin(node, said="a"), pin(node, "bob/")
    look = reader(board)
    assert look.request("GET", "/api/notices") == {"labels": {"said": "a"}}
    node.client.request("PATCH", "/api/boards/alice%2F/labels", {"said": None, "news": "b"})
    assert look.request("GET", "/api/notices") == {"labels": {"news": "b"}}
    assert reader(other).request("GET", "/api/notices") == {"labels": {}}
    inode = Path(board["directory"]).stat().st_ino  # what is mounted into a container
    node.kill()
    stray = Path(board["directory"]).with_name("0" * 32)
    stray.mkdir()
    node.start()
    assert look.request("GET", "/api/notices") == {"labels": {"news": "b"}}
    assert Path(board["directory"]).stat().st_ino == inode
    assert not stray.exists()


def test_it_goes_with_its_server_and_with_the_next_of_that_name(node: Node) -> None:
    board = pin(node)
    again = pin(node)
    assert again["id"] != board["id"]
    assert [each["id"] for each in node.client.request("GET", "/api/boards")["boards"]] == [again["id"]]
    with pytest.raises(DaemonAway):
        reader(board).request("GET", "/api/notices")
    node.client.request("DELETE", f"/api/boards/{again['id']}")
    assert node.client.request("GET", "/api/boards") == {"boards": []}
    wait_until(lambda: not Path(again["directory"]).exists(), 5)
    assert refused(node, "DELETE", f"/api/boards/{again['id']}")[0] == 404


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "name is missing"),
        ({"name": ""}, "can't name a notice board"),
        ({"name": "x" * 300}, "can't name a notice board"),
        ({"name": "a\nb"}, "can't name a notice board"),
        ({"name": "a", "labels": {"x": 1}}, "labels: give up to 16 texts"),
        ({"name": "a", "labels": {"x": "y" * 300}}, "labels: give up to 16 texts"),
        ({"name": "a", "memory": "1G"}, "unknown field 'memory'"),
    ],
)
def test_bad_requests_are_answered_in_words(node: Node, body: Any, words: str) -> None:
    status, said = refused(node, "POST", "/api/boards", body)
    assert (status, words in said) == (400, True), said
    assert node.client.request("GET", "/api/boards") == {"boards": []}


def test_there_is_an_end_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards_module, "BOARDS_MAX", 2)
    boards = Boards(tmp_path, Store(tmp_path / "db.sqlite"), lambda _, path: path.touch)
    boards.create("a", {})
    boards.create("b", {})
    boards.create("b", {})  # the same server's, anew
    with pytest.raises(Refused, match="has 2 notice boards, the most"):
        boards.create("c", {})


def test_one_that_can_not_be_served_is_not_kept(tmp_path: Path) -> None:
    def fails(_: str, path: Path) -> Callable[[], None]:
        raise OSError(28, "No space left on device", str(path))

    store = Store(tmp_path / "db.sqlite")
    boards = Boards(tmp_path, store, fails)
    with pytest.raises(OSError, match="No space left"):
        boards.create("a", {})
    assert (store.boards(), list((tmp_path / "boards").iterdir())) == ([], [])


@pytest.mark.parametrize("path", [*admin_paths(), "/api/slice", "/api/notices/../tenants"])
def test_by_a_board_nothing_else_is_reached(node: Node, path: str) -> None:
    board = pin(node)
    other = pin(node, "bob/", secret="of bob")
    for key in (board["id"], other["id"]):
        for method in METHODS:
            with pytest.raises(DaemonError) as error:
                reader(board).request(method, path.format(key), body_of(method))
            assert error.value.status == 404
    with pytest.raises(DaemonError) as error:
        reader(board).request("PATCH", "/api/notices", {"said": "by alice"})
    assert error.value.status == 405
