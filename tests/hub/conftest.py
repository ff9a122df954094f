"""What the hub's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.node import Node, left_out
from support.postgres import Postgres, find_programs


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if not find_programs():
        left_out("PostgreSQL is not here; as root, tests/install-system-packages.sh installs it")
    made = Postgres()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared_node() -> Iterator[Node]:
    made = Node("--emulate", "--emulated-memory=8G", "--NodeApp.allow_shim_tier=False")
    yield made
    made.stop()
