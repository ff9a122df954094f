"""Quotas as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_vgpu.quotas import (
    MAX_MEMORY,
    MIN_MEMORY,
    Policy,
    Quota,
    QuotaError,
    format_bytes,
    is_called,
    parse_cores,
    parse_memory,
    parse_policy,
    share_now,
)

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4G", 4 * GIB),
        ("4 GiB", 4 * GIB),
        ("512m", GIB // 2),
        ("1.5G", 3 * GIB // 2),
        (4 * GIB, 4 * GIB),
        ("1T", 1024 * GIB),
    ],
)
def test_sizes_as_people_write_them(text: object, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "bad", [0, -1, 10**30, "4 potatoes", "", "G", "1e9", None, True, [], "9" * 400, "NaN", float("inf")]
)
def test_absurd_sizes_are_refused_with_the_value_and_the_way_out(bad: object) -> None:
    with pytest.raises(QuotaError, match=r"^memory=.*(such as '4G'|give from 64 MiB)"):
        parse_memory(bad)


@pytest.mark.parametrize("bad", [0, -1, 100.5, 10**30, "all of it", "", None, True, float("nan"), "inf"])
def test_absurd_shares_are_refused_with_the_value_and_the_allowed_set(bad: object) -> None:
    with pytest.raises(QuotaError, match=r"^cores=.*above 0 and up to 100"):
        parse_cores(bad)


def test_shares_may_carry_their_sign() -> None:
    assert parse_cores("25 %") == parse_cores(25) == 25.0


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(QuotaError, match="'soft' is not a policy: give 'hard' or 'burst'"):
        parse_policy("soft")


def test_a_long_value_is_not_thrown_back_whole() -> None:
    with pytest.raises(QuotaError) as error:
        parse_memory("x" * 5000)
    assert len(str(error.value)) < 200


@given(st.integers(MIN_MEMORY, MAX_MEMORY))
def test_every_size_in_range_survives(size: int) -> None:
    assert parse_memory(size) == parse_memory(str(size)) == size


@given(st.text(max_size=50))
def test_no_text_makes_anything_but_a_size_or_a_quota_error(text: str) -> None:
    try:
        assert MIN_MEMORY <= parse_memory(text) <= MAX_MEMORY
    except QuotaError:
        pass


def test_how_it_reads() -> None:
    assert format_bytes(4 * GIB) == "4 GiB"
    assert format_bytes(1023 << 20) == "1023 MiB"
    assert str(Quota(4 * GIB, 25, Policy.BURST)) == "4 GiB, 25 % burst"


@pytest.mark.parametrize(
    ("policy", "at_work", "share"),
    [
        (Policy.HARD, [], 25),
        (Policy.HARD, [50], 25),
        (Policy.BURST, [], 100),
        (Policy.BURST, [50], 50),
        (Policy.BURST, [75], 25),
        (Policy.HARD, [75, 100], 12.5),
        (Policy.BURST, [75, 100], 12.5),
    ],
)
def test_a_share_is_what_others_at_work_leave(policy: Policy, at_work: list[float], share: float) -> None:
    assert share_now(Quota(1 << 30, 25, policy), at_work) == share


@pytest.mark.parametrize(
    ("model", "name", "is_it"),
    [
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("a100", "NVIDIA A100-SXM4-80GB", True),
        ("A100-SXM4", "NVIDIA A100-SXM4-80GB", True),
        ("L4", "NVIDIA L40S", False),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("", "NVIDIA L4", True),
        ("device 1", "Emulated vGPU device 10", False),
        ("H.00", "NVIDIA H100", False),
    ],
)
def test_a_gpu_is_called_by_whole_words_of_its_name(model: str, name: str, is_it: bool) -> None:
    assert is_called(model, (name,)) == is_it
