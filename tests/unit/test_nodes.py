"""Several machines with GPUs: how they are written in the config, and which is asked first."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from jupyter_vgpu_spawner.docker import VGPUDockerSpawner
from jupyter_vgpu_spawner.fleet import Fleet
from jupyter_vgpu_spawner.local import VGPUSimpleLocalProcessSpawner
from jupyter_vgpu_spawner.nodes import ONLY, NodeConfig, Packing, in_turn, parse_nodes
from jupyter_vgpu_spawner.service.orphans import ORPHAN_S, Orphans
from traitlets import TraitError

from jupyter_vgpu.client import DaemonAway
from jupyter_vgpu.quotas import Quota

GIB = 1 << 30


@pytest.fixture
def remote(tmp_path: Path) -> dict[str, str]:
    files = {name: str(tmp_path / name) for name in ("ca", "cert", "key")}
    for path in files.values():
        Path(path).touch()
    return {"vgpud": "https://10.0.0.7:9413", "docker": "tcp://10.0.0.7:2376", "ip": "10.0.0.7", **files}


def test_without_names_the_socket_is_the_one_node(remote: dict[str, str]) -> None:
    assert parse_nodes({}, "/run/vgpu/vgpud.sock", has_engines=False) == (NodeConfig(ONLY, "/run/vgpu/vgpud.sock"),)
    here, there = parse_nodes({"a": {"vgpud": "/a.sock"}, "b": remote}, "/unused", has_engines=True)
    assert (here.name, here.is_remote, there.name, there.is_remote, there.ip) == ("a", False, "b", True, "10.0.0.7")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vgpud": ""}, "give 'vgpud', and perhaps"),
        ({"gpu": "1"}, "give 'vgpud', and perhaps"),
        ({"vgpud": "http://10.0.0.7:9413"}, "neither a socket's path nor https"),
        ({"vgpud": "https://10.0.0.7"}, "neither a socket's path nor https"),
        ({"vgpud": "https://10.0.0.7:port"}, "neither a socket's path nor https"),
        ({"ca": ""}, "lacks ca"),
        ({"key": "/nowhere/hub.key"}, "key='/nowhere/hub.key' is no file"),
        ({"docker": ""}, "are on one machine"),
        ({"vgpud": "/a.sock"}, "are on one machine"),
        ({"ip": ""}, "lacks 'ip'"),
        ({"ip": 7}, "every value is a text"),
    ],
)
def test_what_is_no_node_is_refused_in_words(remote: dict[str, str], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_nodes({"b": remote | change}, "", has_engines=True)
    with pytest.raises(TraitError, match=re.escape(words)):
        VGPUDockerSpawner(vgpu_nodes={"b": remote | change})


def test_local_processes_are_on_the_hubs_own_machine(remote: dict[str, str]) -> None:
    with pytest.raises(TraitError, match="take vgpu-docker"):
        VGPUSimpleLocalProcessSpawner(vgpu_nodes={"b": remote})


def gpu(node: str, free: int, cores: float = 100, total: int = 80, **more: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{node}-{free}",
        "node": node,
        "name": "NVIDIA H100",
        "labels": [],
        "slices": 0,
        "taken": False,
        "closed": None,
        "memory": {"total": total * GIB, "reserved": (total - free) * GIB},
        "cores": {"total": 100.0, "reserved": 100 - cores},
    } | more


def test_the_emptiest_node_goes_first_or_the_first_with_room() -> None:
    gpus = [gpu("a", 10), gpu("a", 20), gpu("b", 60), gpu("c", 70, cores=10), gpu("d", 80, closed="at six")]
    quota, names = Quota(8 * GIB, 25), ["d", "c", "a", "b"]
    assert in_turn(quota, gpus, names, Packing.SPREAD) == ["b", "a"]
    assert in_turn(quota, gpus, names, Packing.BINPACK) == ["a", "b"]
    assert in_turn(Quota(70 * GIB, 25), gpus, names, Packing.SPREAD) == []
    # who takes all of it gets the smallest that will do
    alone = Quota(8 * GIB, 25, exclusive=True)
    assert in_turn(alone, [gpu("a", 80), gpu("b", 24, total=24)], ["a", "b"], Packing.SPREAD) == ["b", "a"]


def test_a_server_of_before_the_nodes_had_names_is_the_firsts() -> None:
    named = Fleet([NodeConfig("a", "/a.sock"), NodeConfig("b", "/b.sock")])
    assert (named.known_as(ONLY), named.known_as("b"), named.known_as("gone")) == ("a", "b", "gone")


def test_all_away_is_said_with_where(tmp_path: Path) -> None:
    fleet = Fleet([NodeConfig(name, str(tmp_path / name)) for name in "ab"])
    with pytest.raises(DaemonAway, match=str(tmp_path / "a")):
        asyncio.run(fleet.gpus())


def tenant(name: str, made: str = "2026-01-01T00:00:00+00:00", key: str = "") -> dict[str, Any]:
    return {"id": key or name, "name": name, "created": made, "labels": {}}


def test_a_slice_without_a_server_is_an_orphan_after_a_while() -> None:
    orphans, slices = Orphans(), [tenant("alice/"), tenant("bob/two"), tenant("eve/"), tenant("zoe/")]
    servers = {"alice": ("",), "bob": ("",), "eve": None}  # of eve the hub does not say
    assert orphans.look(slices, servers, 0) == []
    assert orphans.look(slices, servers, ORPHAN_S - 1) == []
    assert [each["name"] for each in orphans.look(slices, servers, ORPHAN_S)] == ["bob/two", "zoe/"]


def test_a_server_that_was_seen_in_between_makes_it_none() -> None:
    orphans, slices = Orphans(), [tenant("alice/")]
    assert orphans.look(slices, {}, 0) == []
    assert orphans.look(slices, {"alice": ("",)}, ORPHAN_S - 1) == []
    assert orphans.look(slices, {}, ORPHAN_S + 1) == []


def test_of_two_slices_of_one_server_the_newer_is_its() -> None:
    old, new = tenant("alice/", key="old"), tenant("alice/", "2026-01-01T00:05:00+00:00", "new")
    orphans = Orphans()
    orphans.look([new, old], {"alice": ("",)}, 0)
    assert orphans.look([new, old], {"alice": ("",)}, ORPHAN_S) == [old]
