"""What the tests on a real GPU share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gpu import build_attack, build_cuda
from support.node import Node


@pytest.fixture(scope="module")
def gpu_node() -> Iterator[Node]:
    os.environ["VGPU_GUARD_TRACE"] = "1"
    made = Node()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_attack(tmp_path_factory.mktemp("attack"))


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cuda("benchmarks/gpu/load.c", tmp_path_factory.mktemp("load"))


@pytest.fixture(scope="session")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cuda("tests/gpu/names.c", tmp_path_factory.mktemp("names"))


@pytest.fixture(scope="session")
def waits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cuda("tests/gpu/waits.c", tmp_path_factory.mktemp("waits"))
