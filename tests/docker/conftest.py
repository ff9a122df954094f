"""What the tests with a Docker Engine share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import left_out

sys.path.insert(0, str(Path(__file__).parent))
from engine import Engine, available


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """One for all, for its image takes a minute to build."""
    if reason := available():
        left_out(reason)
    made = Engine()
    yield made
    made.stop()
