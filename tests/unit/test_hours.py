"""GPU-hours: windows, and what is left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_vgpu_spawner.hours import Window, hour_of, why_spent, window_start
from jupyter_vgpu_spawner.service.meter import LONGEST_S, Meter

from jupyter_vgpu.hours import LABEL, Balance, End, told
from jupyter_vgpu.quotas import Quota

SATURDAY = datetime(2026, 11, 21, 17, 30, tzinfo=UTC)


def test_a_week_begins_on_monday_and_a_rolling_window_seven_days_ago() -> None:
    assert window_start(Window.WEEK, SATURDAY) == hour_of(datetime(2026, 11, 16, tzinfo=UTC))
    assert window_start(Window.ROLLING, SATURDAY) == hour_of(SATURDAY - timedelta(days=7)) + 1


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)), st.sampled_from(Window))
def test_a_window_has_a_week_at_most_and_this_hour_in_it(now: datetime, window: Window) -> None:
    assert 0 <= hour_of(now) - window_start(window, now) < 7 * 24


@pytest.mark.parametrize(
    ("balance", "spent", "low"),
    [
        (Balance(7.9, 10), False, False),
        (Balance(8, 10), False, True),
        (Balance(10, 10), True, True),
        (Balance(10.5, 10, grace=1), False, True),
        (Balance(11, 10, grace=1), True, True),
        (Balance(99, None), False, False),
        (Balance(0, 0), True, True),
    ],
)
def test_warned_first_then_let_pass_then_refused(balance: Balance, spent: bool, low: bool) -> None:
    assert (balance.is_spent, balance.passed([0.8]) > 0) == (spent, low)


def test_each_part_that_is_warned_at_is_passed_by_itself() -> None:
    passed = [Balance(spent, 10).passed([0.95, 0.8]) for spent in (7.9, 8, 9.4, 9.5, 12)]
    assert passed == [0, 0.8, 0.8, 0.95, 0.95]
    assert Balance(5, 10).passed([]) == 0
    assert [Balance(spent, 10).left for spent in (0, 7.5, 12)] == [10, 2.5, 0]


def test_who_is_refused_is_told_when_there_will_be_more() -> None:
    assert "on Monday, 23 November, 00:00 UTC" in why_spent(Balance(10, 10), Window.WEEK, SATURDAY)
    assert "seven days after they were used" in why_spent(Balance(10, 10), Window.ROLLING, SATURDAY)
    assert why_spent(Balance(9, 10), Window.WEEK, SATURDAY) == ""
    assert why_spent(Balance(2, 0), Window.ROLLING, SATURDAY).startswith("you have no GPU-hours")


def tenant(key: str, user: str | None, cores: float, on_gpu_s: float, exclusive: bool = False) -> dict[str, object]:
    labels = {"jupyterhub_user": user} if user else {}
    return {
        "id": key,
        "labels": labels,
        "node": "node",
        "gpu": {"mig": False, "cores": 100.0},
        "quota": Quota(1 << 30, cores, exclusive=exclusive).as_json(),
        "usage": {"on_gpu_ns": on_gpu_s * 1e9},
        "tier": "guard",
        "activity": {"busy": True},
    }


def test_held_by_the_percent_and_used_by_the_gpu() -> None:
    meter = Meter()
    assert meter.look([tenant("a", "alice", 25, 5), tenant("x", None, 50, 0)], 100) == {}
    found = meter.look([tenant("a", "alice", 25, 9), tenant("b", "alice", 50, 0)], 110)
    assert found["alice"].held == pytest.approx(10 * 0.25 / 3600)
    assert found["alice"].used == pytest.approx(4 / 3600)
    found = meter.look([tenant("a", "alice", 25, 9), tenant("b", "alice", 50, 0)], 120)
    assert found["alice"].held == pytest.approx(10 * 0.75 / 3600)


def test_a_gpu_that_nobody_else_may_use_is_held_whole() -> None:
    meter = Meter()
    for now in (0, 10):
        found = meter.look([tenant("a", "alice", 25, 0, exclusive=True)], now)
    assert found["alice"].held == pytest.approx(10 / 3600)


def test_a_part_of_a_gpu_is_held_whole_and_is_no_whole_gpu() -> None:
    meter, on_part = Meter(), {"gpu": {"mig": True, "cores": 14.0}}
    for now in (0, 10):
        found = meter.look([tenant("a", "alice", 1, 0, exclusive=True) | on_part], now)
    assert found["alice"].held == pytest.approx(10 * 0.14 / 3600)
    models = ("MIG 1g.10gb", "1g.10gb", "H100", "")
    assert [Quota(1, 14, model=model, exclusive=True).cores_kept for model in models] == [14, 14, 100, 100]


def test_in_tier_shim_who_is_at_work_uses_the_slice() -> None:
    meter, shim = Meter(), {"tier": "shim"}
    meter.look([tenant("a", "alice", 50, 0) | shim], 0)
    found = meter.look([tenant("a", "alice", 50, 0) | shim], 10)
    assert found["alice"].used == found["alice"].held == pytest.approx(5 / 3600)
    found = meter.look([tenant("a", "alice", 50, 0) | shim | {"activity": {"busy": False}}], 20)
    assert found["alice"].used == 0


def test_a_guard_that_began_anew_and_a_service_that_was_away_charge_nobody() -> None:
    meter = Meter()
    meter.look([tenant("a", "alice", 100, 50)], 0)
    found = meter.look([tenant("a", "alice", 100, 1)], 10_000)
    assert (found["alice"].used, found["alice"].held) == (0, pytest.approx(LONGEST_S / 3600))


def test_what_was_held_while_a_node_did_not_answer_is_counted_when_it_does() -> None:
    meter, there, here = Meter(), tenant("a", "alice", 100, 0) | {"node": "b"}, tenant("c", "carol", 100, 0)
    meter.look([there, here], 0)
    meter.look([here], 10, {"b"})
    assert meter.look([there, here], 30)["alice"].held == pytest.approx(30 / 3600)
    meter.look([here], 40)  # it has ended
    assert "alice" not in meter.look([there, here], 50)


@pytest.mark.parametrize(
    ("balance", "state"),
    [
        (Balance(7.9, 10), "enough"),
        (Balance(8, 10), "low"),
        (Balance(10.5, 10, 1), "low"),
        (Balance(11, 10, 1), "spent"),
    ],
)
def test_what_is_written_on_a_slice_is_read_in_it(balance: Balance, state: str) -> None:
    said = told({LABEL: balance.as_label([0.8, 0.9], End.STOP)})
    values = {"spent": balance.spent, "allowed": balance.allowed, "grace": balance.grace}
    assert said == values | {"state": state, "end": "stop", "passed": balance.passed([0.8, 0.9, 1])}


def test_what_changes_by_less_than_people_count_is_not_written_anew() -> None:
    assert Balance(1.01, 10).as_label([0.8], End.STOP) == Balance(1.04, 10).as_label([0.8], End.STOP)
    assert Balance(1, None).as_label([0.8], End.STOP) == ""


@pytest.mark.parametrize(
    "label",
    ["", "null", "{}", '{"spent": "much"}', '{"spent": 1, "allowed": 2, "grace": 0, "state": "x", "end": "stop"}'],
)
def test_what_another_version_wrote_is_left_alone(label: str) -> None:
    assert told({LABEL: label}) is None
