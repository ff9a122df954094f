"""A GPU's slices, drawn to scale."""

from __future__ import annotations

import re
from typing import Any

from jupyter_vgpu_spawner.service.bars import draw

GIB = 1 << 30


def tenant(name: str, quota: int, used: int) -> dict[str, Any]:
    return {"name": name, "quota": {"memory": quota * GIB}, "usage": {"memory": used * GIB}}


def test_slices_lie_side_by_side_by_what_they_were_promised() -> None:
    drawn = draw([tenant("a/", 2, 1), tenant("b/", 4, 0), tenant("c/", 2, 2)], "memory", 8 * GIB)
    rows = re.findall(r'x="([\d.]+)" width="([\d.]+)"', drawn)
    assert rows == [("0.00", "250.00"), ("250.00", "500.00"), ("750.00", "250.00")]
    assert "<title>b/: 4 GiB</title>" in drawn
    assert re.findall(r"M([\d.]+) 11h([\d.]+)V20", drawn) == [("0.00", "125.00"), ("750.00", "250.00")]


def test_use_beyond_a_quota_that_was_cut_stays_in_its_own_slice() -> None:
    assert "M0.00 11h250.00V20" in draw([tenant("a/", 2, 5)], "memory", 8 * GIB)


def test_a_name_with_html_is_text_and_a_gpu_without_memory_has_no_width() -> None:
    drawn = draw([tenant("<script>", 2, 1)], "memory", 0)
    assert "<script>" not in drawn
    assert "&lt;script&gt;" in drawn
    assert 'width="0.00"' in drawn
