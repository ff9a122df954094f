"""What is told of a wait, and what a group's share may be."""

from __future__ import annotations

import pytest
from jupyter_vgpu_spawner.limits import group_rules, group_share
from jupyter_vgpu_spawner.service.words import format_duration, format_waited, say_when
from jupyter_vgpu_spawner.turns import Forecast


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "a minute"), (200, "3 minutes"), (1400, "25 minutes"), (5900, "100 minutes"), (9000, "2 hours")],
)
def test_a_wait_is_told_no_finer_than_anybody_can_know(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_a_wait_that_has_begun_is_not_a_minute_long() -> None:
    assert [format_waited(seconds) for seconds in (2, 59, 60)] == [
        "less than a minute",
        "less than a minute",
        "a minute",
    ]


def test_a_turn_is_told_with_how_sure_it_is() -> None:
    assert (
        say_when(Forecast(600, 5400))
        == "As likely as not within 10 minutes; nine in ten such waits end within 90 minutes."
    )
    assert say_when(Forecast(600, 610)) == "The turn comes in about 10 minutes."
    assert "perhaps much later" in say_when(Forecast(600, None))
    assert "longer than can be told" in say_when(Forecast(None, None))
    assert "too few servers" in say_when(None)


def test_a_groups_share_is_no_quota_and_a_wrong_one_is_told() -> None:
    assert group_share({"vgpu": {"share": 2, "memory": "4G"}}) == 2
    assert [group_share(each) for each in (None, {}, {"vgpu": {}}, {"vgpu": 7})] == [1, 1, 1, 1]
    rules, wrong = group_rules([("physics", {"vgpu": {"share": 2, "memory": "4G"}})])
    assert (rules[0].memory, wrong) == (4 << 30, [])
    for share in (0, -1, "2", True, float("nan"), 1e9):
        assert group_share({"vgpu": {"share": share}}) == 1
        assert "is no share: give a number" in group_rules([("physics", {"vgpu": {"share": share}})])[1][0]
