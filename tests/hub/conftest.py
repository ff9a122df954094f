"""What the hub's tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import Node, left_out
from support.postgres import Postgres, find_programs

sys.path.insert(0, str(Path(__file__).parent))
from hub import Hub, with_service


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


@pytest.fixture(scope="module")
def hub(request: pytest.FixtureRequest, shared_node: Node) -> Iterator[Hub]:
    """With the service, and the CONFIG of the module that asks."""
    made = with_service(shared_node, request.module.CONFIG)
    yield made
    made.stop()
