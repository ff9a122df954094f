"""Answers of a moment ago."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import jupyter_vgpu_spawner.service.recent as recent_module
import pytest
from jupyter_vgpu_spawner.service.recent import Recent


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Source:
    """Counts how often it is asked; answers when it is let."""

    def __init__(self) -> None:
        self.asked, self.may_answer = 0, asyncio.Event()
        self.may_answer.set()

    async def ask(self) -> int:
        self.asked += 1
        number = self.asked
        await self.may_answer.wait()
        return number


async def _is_given_again_until_it_is_stale(clock: Clock) -> None:
    source = Source()
    recent = Recent("it", source.ask, fresh=1, stale=3)
    assert [await recent.get(), await recent.get(), source.asked] == [1, 1, 1]
    clock.now += 2
    assert await recent.get() == 1  # and it is asked for behind the answer's back
    for _ in range(3):
        await asyncio.sleep(0)
    assert [await recent.get(), source.asked] == [2, 2]
    clock.now += 4
    assert await recent.get() == 3


async def _what_is_forgotten_is_asked_for_anew_also_where_an_answer_is_on_its_way(_: Clock) -> None:
    source = Source()
    recent = Recent("it", source.ask, fresh=10, stale=20)
    source.may_answer.clear()
    old = asyncio.create_task(recent.get())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    recent.forget()  # of before the change: whoever asks from now on gets another
    new = asyncio.create_task(recent.get())
    await asyncio.sleep(0)
    source.may_answer.set()
    assert await asyncio.gather(old, new) == [1, 2]
    assert await recent.get() == 2


async def _an_error_is_everybodys_and_not_kept(_: Clock) -> None:
    answers = [OSError("away"), "back"]

    async def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    recent = Recent("it", ask, fresh=10, stale=20)
    with pytest.raises(OSError, match="away"):
        await recent.get()
    assert await recent.get() == "back"


@pytest.mark.parametrize(
    "story",
    [
        _is_given_again_until_it_is_stale,
        _what_is_forgotten_is_asked_for_anew_also_where_an_answer_is_on_its_way,
        _an_error_is_everybodys_and_not_kept,
    ],
)
def test_what_was_asked_a_moment_ago(
    story: Callable[[Clock], Coroutine[Any, Any, None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(recent_module, "time", clock)
    asyncio.run(story(clock))
