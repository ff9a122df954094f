"""What the spawn page offers, and what comes of the choice."""

from __future__ import annotations

import pytest
from jupyter_vgpu_spawner.choices import allowed_slices, choices, pick, slice_key

from jupyter_vgpu.quota import Policy, Quota, QuotaError

GIB = 1 << 30
CEILING = Quota(4 * GIB, 50, Policy.BURST)
SLICES = [{"memory": "2G", "cores": 10}, {"memory": "4G", "cores": 50}, {"memory": "8G", "cores": 50}]


def gpu(memory: int, cores: float) -> dict[str, dict[str, float]]:
    return {"memory": {"free": memory}, "cores": {"free": cores}}


def test_slices_above_the_ceiling_are_not_offered() -> None:
    assert [slice_key(quota) for quota in allowed_slices(SLICES, CEILING)] == ["2GiB-10", "4GiB-50"]


def test_without_slices_the_ceiling_is_the_slice() -> None:
    assert allowed_slices([], CEILING) == [CEILING]


def test_a_malformed_slice_in_the_config_is_named() -> None:
    with pytest.raises(
        QuotaError, match="gpu_slices has {'mem': '2G'}: each slice is a dict with 'memory' and 'cores'"
    ):
        allowed_slices([{"mem": "2G"}], CEILING)


def test_what_has_no_room_says_why() -> None:
    lines = choices(allowed_slices(SLICES, CEILING), [gpu(3 * GIB, 20)])
    assert [line.why_not for line in lines] == ["", "in use by others: 3 GiB and 20 % of compute are free"]


def test_memory_on_one_gpu_and_compute_on_another_is_no_room() -> None:
    assert choices([CEILING], [gpu(8 * GIB, 0), gpu(0, 100)])[0].why_not


@pytest.mark.parametrize("key", ["8GiB-50", "", "../../etc", 7, ["2GiB-10"], {"a": 1}, "<script>"])
def test_what_is_not_offered_can_not_be_had(key: object) -> None:
    with pytest.raises(QuotaError, match=r"is not one of yours: choose from 2GiB-10, 4GiB-50, none"):
        pick(key, allowed_slices(SLICES, CEILING))


def test_a_choice_carries_the_policy_of_the_config() -> None:
    picked = pick("2GiB-10", allowed_slices(SLICES, CEILING))
    assert picked == Quota(2 * GIB, 10, Policy.BURST)
    assert pick("none", []) is None
