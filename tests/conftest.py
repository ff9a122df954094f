"""Fixtures that every part of the tests may use."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from support.node import Node

# a machine with a GPU needs no Jupyter server for tests/gpu
pytest_plugins = ["pytest_jupyter.jupyter_server"] if importlib.util.find_spec("pytest_jupyter") else []

HAS_GPU = Path("/dev/nvidiactl").exists()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the real card run where there is one: `make test-gpu`. Elsewhere they are left out, aloud."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not HAS_GPU:
        kept = [item for item in items if item not in gpu]
        config.hook.pytest_deselected(items=gpu)
        items[:] = kept


def pytest_terminal_summary(terminalreporter: object, config: pytest.Config) -> None:
    if not HAS_GPU:
        terminalreporter.write_line(
            "no NVIDIA GPU here: tests/gpu was left out; run 'make test-gpu' where there is one"
        )  # type: ignore[attr-defined]


@pytest.fixture
def node() -> Iterator[Node]:
    """A node daemon with one emulated GPU of 8 GiB, where the guard holds or nothing starts."""
    made = Node("--emulate", "--emulated-memory=8G", "--NodeApp.allow_shim_tier=False")
    yield made
    made.stop()


@pytest.fixture
def divided() -> Iterator[Node]:
    """A whole GPU, and two parts of another."""
    made = Node("--emulate", "--emulated-memory=8G", "--emulated-gpus=2", "--emulated-mig=2")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shim_node() -> Iterator[Node]:
    """The same in tier `shim`, where managed memory may overflow into as much again."""
    made = Node("--emulate", "--emulated-memory=8G", "--NodeApp.force_shim_tier=True", "--mem-oversubscribe=2")
    yield made
    made.stop()
