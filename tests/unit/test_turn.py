"""What is told of a user's place in the queue: all of it fits a label, and of several servers the one that matters."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from jupyter_vgpu_spawner.fleet import View
from jupyter_vgpu_spawner.queue_store import Entry
from jupyter_vgpu_spawner.rules import HUB_LABEL, USER_LABEL
from jupyter_vgpu_spawner.service.dispatcher import CALL_S, Standing
from jupyter_vgpu_spawner.service.news import News, turn_of
from jupyter_vgpu_spawner.turns import Forecast, Waiting

from jupyter_vgpu.api import LABEL_LENGTH
from jupyter_vgpu.quotas import Quota
from jupyter_vgpu.turn import LABEL, Stage, Turn, told


@pytest.mark.parametrize(
    "turn",
    [
        Turn("", Stage.WAITING, 3, 20),
        Turn("gpu", Stage.CALLED, until=1_790_000_000),
        Turn("服务器", Stage.ENDED, words="it was started without a GPU, for you may have none now."),
    ],
)
def test_what_is_written_on_a_label_is_read_again(turn: Turn) -> None:
    assert told({LABEL: turn.as_label()}) == {
        "server": turn.server,
        "stage": str(turn.stage),
        "number": turn.number,
        "minutes": turn.minutes,
        "until": turn.until,
        "words": turn.words,
    }


@pytest.mark.parametrize("nasty", ["x", '"', "\\", "\x00", "名", "</script>"])
def test_names_and_words_of_any_length_fit(nasty: str) -> None:
    label = Turn(nasty * 300, Stage.ENDED, 10**9, 1440, 1_790_000_000.0, nasty * 300).as_label()
    assert len(label) <= LABEL_LENGTH
    read = told({LABEL: label})
    assert read
    assert (read["stage"], read["number"]) == ("ended", 10**9)
    assert (nasty * 300).startswith(read["server"].removesuffix("…"))
    assert read["server"].endswith("…")


@pytest.mark.parametrize("label", ["", "{}", "[]", "nothing", '{"server": "", "stage": "lost", "number": 1}'])
def test_what_another_version_wrote_is_no_turn(label: str) -> None:
    assert told({LABEL: label}) is None
    assert told({}) is None


def standing(server: str, stage: Stage, number: int = 0, **more: Any) -> Standing:
    waiting = Waiting("alice", server, Quota(1 << 30, 25), since=0.0)
    entry = Entry(waiting, {}, stage, at=more.get("at", 1000.0), words=more.get("words", ""))
    return Standing(entry, number, more.get("forecast"))


def test_of_several_servers_the_one_that_is_called_is_told_then_the_next() -> None:
    ended = standing("old", Stage.ENDED, words="no")
    third, first = standing("b", Stage.WAITING, 3), standing("a", Stage.WAITING, 1)
    called = standing("c", Stage.CALLED, words="stop it")
    assert turn_of([ended, third, first, called]) == Turn("c", Stage.CALLED, until=1000 + CALL_S)
    assert turn_of([ended, third, first]) == Turn("a", Stage.WAITING, 1)
    assert turn_of([ended, standing("new", Stage.ENDED, at=2000.0, words="late")]).words == "late"


@pytest.mark.parametrize(("seconds", "minutes"), [(20, 1), (250, 5), (301, 10), (80_000, 1440), (90_000, None)])
def test_a_forecast_is_told_in_steps(seconds: float, minutes: int | None) -> None:
    assert turn_of([standing("", Stage.WAITING, 1, forecast=Forecast(seconds, None))]).minutes == minutes
    assert turn_of([standing("", Stage.WAITING, 1, forecast=Forecast(None, None))]).minutes is None


class Nodes:
    """What the service asks of the nodes, for one that has servers of two hubs."""

    def __init__(self, *servers: dict[str, Any]) -> None:
        self.view = View(boards=[server | {"node": "a"} for server in servers])
        self.said: list[tuple[str, dict[str, str | None]]] = []

    async def servers(self) -> View:
        return self.view

    async def ask(self, server: dict[str, Any], _: str, __: str, labels: dict[str, str | None]) -> None:
        self.said.append((server["id"], labels))


class Queue:
    def __init__(self, *standings: Standing) -> None:
        self.now = list(standings)

    async def standings(self) -> list[Standing]:
        return self.now

    async def note(self, standings: list[Standing]) -> None:
        assert standings == self.now


def board(name: str, user: str, hub: str, **labels: str) -> dict[str, Any]:
    return {"id": name, "name": name, "labels": {USER_LABEL: user, HUB_LABEL: hub, **labels}}


def test_a_hub_speaks_to_its_own_users_alone_and_takes_back_what_is_over() -> None:
    theirs = Turn("", Stage.CALLED).as_label()
    nodes = Nodes(
        board("mine", "alice", "physics"),
        board("old", "dean", "physics", **{LABEL: theirs}),
        board("other", "alice", "maths", **{LABEL: theirs}),
    )
    queue = Queue(standing("", Stage.WAITING, 1))
    news = News(queue, nodes, "physics")  # type: ignore[arg-type]
    asyncio.run(news.tell())
    assert nodes.said == [("mine", {LABEL: Turn("", Stage.WAITING, 1).as_label()}), ("old", {LABEL: None})]
    nodes.view.boards[0]["labels"][LABEL] = Turn("", Stage.WAITING, 1).as_label()
    del nodes.view.boards[1]["labels"][LABEL]
    nodes.said.clear()
    asyncio.run(news.tell())
    assert nodes.said == []  # it is said already
    queue.now.clear()
    asyncio.run(news.tell())
    assert nodes.said == [("mine", {LABEL: None})]
