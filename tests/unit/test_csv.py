"""CSV that people open in a spreadsheet."""

from __future__ import annotations

import pytest
from jupyter_vgpu_spawner.service.exports import as_cell


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_that_begins_like_a_formula_is_text(name: str) -> None:
    assert as_cell(name) == f"'{name}"


def test_other_cells_are_as_they_are() -> None:
    assert [as_cell(value) for value in ("alice", 5, 1.5, None, "a=b")] == ["alice", "5", "1.5", "", "a=b"]
