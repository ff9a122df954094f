"""Several machines with GPUs: how they are written in the config, and which is asked first."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from types import SimpleNamespace
from typing import Any

import jupyter_vgpu_spawner.fleet as fleet_module
import pytest
from jupyter_vgpu_spawner.database import Database
from jupyter_vgpu_spawner.docker import VGPUDockerSpawner
from jupyter_vgpu_spawner.errors import Told
from jupyter_vgpu_spawner.fleet import Fleet
from jupyter_vgpu_spawner.local import VGPUSimpleLocalProcessSpawner
from jupyter_vgpu_spawner.nodes import ONLY, NodeConfig, Packing, in_turn, parse_nodes
from jupyter_vgpu_spawner.rules import HUB_LABEL
from jupyter_vgpu_spawner.service.orphans import ORPHAN_S, Orphans
from traitlets import TraitError

from jupyter_vgpu.client import DaemonAway, DaemonError
from jupyter_vgpu.quotas import Quota
from jupyter_vgpu.turn import Stage

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
        ({"docker": ""}, "are on one machine"),
        ({"vgpud": "/a.sock"}, "are on one machine"),
        ({"ip": ""}, "lacks 'ip'"),
        ({"ip": 7}, "every value is a text"),
        ({"docker": "http://10.0.0.7:2375"}, "no engine on the network"),
        ({"docker": "unix:///var/run/docker.sock"}, "no engine on the network"),
        ({"docker": "tcp://10.0.0.7"}, "no engine on the network"),
    ],
)
def test_what_is_no_node_is_refused_in_words(remote: dict[str, str], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_nodes({"b": remote | change}, "", has_engines=True)
    with pytest.raises(TraitError, match=re.escape(words)):
        VGPUDockerSpawner(vgpu_nodes={"b": remote | change})


def test_a_node_has_one_name(remote: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"has 'https://10.0.0.7:9413' twice"):
        parse_nodes({"b": remote, "c": remote}, "", has_engines=True)


def test_a_file_that_is_not_there_is_said_when_the_hub_starts_and_not_by_each_server(remote: dict[str, str]) -> None:
    lacking = remote | {"key": "/nowhere/hub.key"}
    (node,) = parse_nodes({"b": lacking}, "", has_engines=True)
    with pytest.raises(ValueError, match="key='/nowhere/hub.key' is no file"):
        node.check_files()
    VGPUDockerSpawner(vgpu_nodes={"b": lacking})


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


def slice_of(name: str, key: str) -> dict[str, Any]:
    return {"id": key, "name": name}


def test_a_slice_that_no_server_calls_its_own_is_an_orphan_after_a_while() -> None:
    orphans = Orphans()
    slices = [slice_of("alice/", "a"), slice_of("bob/", "old"), slice_of("bob/", "new"), slice_of("eve/", "e")]
    held, unsure = {"a", "new"}, {"eve/"}  # eve's server is on its way; bob has another slice now, on another node
    assert orphans.look(slices, held, unsure, 0) == []
    assert orphans.look(slices, held, unsure, ORPHAN_S - 1) == []
    assert orphans.look(slices, held, unsure, ORPHAN_S) == [slice_of("bob/", "old")]


def test_a_slice_whose_server_was_seen_in_between_is_none() -> None:
    orphans, slices = Orphans(), [slice_of("alice/", "a")]
    assert orphans.look(slices, (), (), 0) == []
    assert orphans.look(slices, ("a",), (), ORPHAN_S - 1) == []
    assert orphans.look(slices, (), (), ORPHAN_S + 1) == []


class Answering:
    """Something that answers on a socket, and counts. answers: status and bytes, one for each question, the last again."""

    def __init__(self, path: Path, *answers: tuple[int, bytes], seconds: float = 0) -> None:
        asked = self.asked = []  # type: list[str]

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                asked.append(f"{self.command} {self.path}")
                time.sleep(seconds)
                status, body = answers[min(len(asked), len(answers)) - 1]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815 (as http.server calls them)

            def address_string(self) -> str:
                return "a client"

            def log_message(self, *_: object) -> None:
                pass

        self._server = UnixStreamServer(str(path), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def told(*gpus: dict[str, Any]) -> tuple[int, bytes]:
    return 200, json.dumps({"gpus": gpus, "maintenance": None}).encode()


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[..., Answering]]:
    made: list[Answering] = []

    def make(name: str, *answers: tuple[int, bytes], seconds: float = 0) -> Answering:
        made.append(Answering(tmp_path / name, *answers, seconds=seconds))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def fleet_of(tmp_path: Path, *names: str) -> Fleet:
    return Fleet([NodeConfig(name, str(tmp_path / name)) for name in names])


async def place(fleet: Fleet, quota: Quota) -> dict[str, Any]:
    return await fleet.place(await fleet.gpus(), quota, {"name": "alice/"}, Packing.SPREAD)


@pytest.mark.parametrize("wrong", [(500, b'{"error": "broken"}'), (200, b"<html>somebody else</html>")])
def test_a_node_that_answers_wrongly_takes_no_other_with_it(
    tmp_path: Path, answering: Callable[..., Answering], wrong: tuple[int, bytes]
) -> None:
    answering("a", told(gpu("a", 10)))
    answering("b", wrong)
    view = asyncio.run(fleet_of(tmp_path, "a", "b").gpus())
    assert [each["node"] for each in view.gpus] == ["a"]
    assert list(view.away) == ["b"]


def test_one_daemon_with_two_names_is_there_once(tmp_path: Path, answering: Callable[..., Answering]) -> None:
    same = told(gpu("a", 10))
    answering("a", same)
    answering("b", same)
    assert [each["node"] for each in asyncio.run(fleet_of(tmp_path, "a", "b").gpus()).gpus] == ["a"]


def test_who_keeps_the_asker_waiting_is_left_alone_for_a_while_and_then_asked_by_one(
    tmp_path: Path, answering: Callable[..., Answering], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "SLOW_S", 0.1)
    monkeypatch.setattr(fleet_module, "REST_S", 0.5)
    answering("a", told(gpu("a", 10)))
    slow = answering("b", (200, b"not yet"), (200, b"not yet"), told(gpu("b", 10)), seconds=0.2)
    fleet = fleet_of(tmp_path, "a", "b")

    async def story() -> None:
        assert list((await fleet.gpus()).away) == ["b"]
        assert list((await fleet.gpus()).away) == ["b"]
        assert len(slow.asked) == 1
        await asyncio.sleep(0.6)
        await asyncio.gather(*(fleet.gpus() for _ in range(5)))
        assert len(slow.asked) == 2
        await asyncio.sleep(0.6)
        assert (await fleet.gpus()).away == {}

    asyncio.run(story())


def test_a_node_that_is_back_and_says_no_is_back(
    tmp_path: Path, answering: Callable[..., Answering], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "SLOW_S", 0.1)
    monkeypatch.setattr(fleet_module, "REST_S", 0.3)
    answering("a", (200, b"not yet"), (404, b'{"error": "no tenant"}'), told(gpu("a", 10)), seconds=0.2)
    fleet = fleet_of(tmp_path, "a")

    async def story() -> None:
        with pytest.raises(DaemonAway):
            await fleet.gpus()
        await asyncio.sleep(0.4)
        with pytest.raises(DaemonError, match="no tenant"):
            await fleet.find("alice/")
        assert [each["node"] for each in (await fleet.gpus()).gpus] == ["a"]

    asyncio.run(story())


def test_a_node_that_was_faster_taken_is_not_the_last_that_is_asked(
    tmp_path: Path, answering: Callable[..., Answering]
) -> None:
    first = answering("a", told(gpu("a", 60)), (409, b'{"error": "no room"}'))
    second = answering("b", told(gpu("b", 20)), (201, b'{"id": "t"}'))
    quota = Quota(8 * GIB, 25)
    made = asyncio.run(place(fleet_of(tmp_path, "a", "b"), quota))
    assert made == {"id": "t", "node": "b"}
    assert first.asked[1:] == second.asked[1:] == ["POST /api/tenants"]


def test_where_no_node_has_room_the_words_say_what_is_free(tmp_path: Path, answering: Callable[..., Answering]) -> None:
    less = gpu("a", 2) | {"memory": {"total": 80 * GIB, "reserved": 78 * GIB, "free": 2 * GIB}}
    less["cores"] = {"total": 100.0, "reserved": 0.0, "free": 100.0}
    answering("a", told(less))
    quota = Quota(8 * GIB, 25)
    with pytest.raises(DaemonError, match="2 GiB and 100 % of compute are free"):
        asyncio.run(place(fleet_of(tmp_path, "a", "gone"), quota))
    with pytest.raises(DaemonError, match="a machine with GPUs does not answer now"):
        asyncio.run(place(fleet_of(tmp_path, "a", "gone"), Quota(90 * GIB, 25)))


def test_a_start_asks_each_node_once_and_what_an_earlier_server_left_is_removed_first(
    tmp_path: Path, answering: Callable[..., Answering]
) -> None:
    def and_tenants(*tenants: dict[str, Any]) -> tuple[int, bytes]:
        return 200, json.dumps({"gpus": [gpu("a", 10)], "maintenance": None, "tenants": tenants}).encode()

    none, old = and_tenants(), {"id": "old", "name": "alice/", "quota": {}, "labels": {HUB_LABEL: "mine"}}
    first = answering("a", none)
    second = answering("b", and_tenants(old), (200, b"null"), none)
    fleet = fleet_of(tmp_path, "a", "b")
    look = "GET /api/gpus?tenant=alice%2F"
    assert asyncio.run(fleet.gpus_without("alice/", "theirs")).tenants == [old | {"node": "b"}]
    assert (first.asked, second.asked) == ([look], [look])
    second.asked.clear()
    assert asyncio.run(fleet.gpus_without("alice/", "mine")).tenants == []
    assert (first.asked, second.asked) == ([look] * 3, [look, "DELETE /api/tenants/old", look])


def test_a_node_that_is_older_than_the_hub_takes_no_other_with_it(
    tmp_path: Path, answering: Callable[..., Answering]
) -> None:
    answering("a", told(gpu("a", 10)))  # which knows nothing of tenants beside GPUs
    answering("b", (200, json.dumps({"gpus": [gpu("b", 10)], "maintenance": None, "tenants": []}).encode()))
    view = asyncio.run(fleet_of(tmp_path, "a", "b").gpus_without("alice/", ""))
    assert ([each["node"] for each in view.gpus], list(view.away)) == (["b"], ["a"])
    assert "does not tell of tenants: it is older" in view.away["a"]
    with pytest.raises(DaemonError, match="older than this hub"):
        asyncio.run(fleet_of(tmp_path, "a").gpus_without("alice/", ""))


def test_who_is_called_while_the_nodes_are_asked_is_not_overtaken(
    tmp_path: Path, answering: Callable[..., Answering]
) -> None:
    """The room that eve's start sees was given to bob after she came."""
    database = Database(f"sqlite:///{tmp_path}/vgpu.sqlite")
    database.upgrade()
    free = gpu("a", 8, tenants=[])
    node = answering("a", (200, json.dumps({"gpus": [free], "maintenance": None, "tenants": []}).encode()))
    quota = Quota(8 * GIB, 25)

    class Eve(VGPUSimpleLocalProcessSpawner):
        async def gpu_balance(self, entitlement: Any) -> Any:  # it is past the queue's first look, not at the nodes yet
            database.queue.join("bob", "", quota, {})
            database.queue.move(database.queue.entries()[0], Stage.CALLED, gpu=free["uuid"])
            return await super().gpu_balance(entitlement)

    user = SimpleNamespace(name="eve", url="/user/eve/", server=None, orm_user=None, groups=[])
    eve = Eve(user=user, vgpu_socket=str(tmp_path / "a"), gpu_queue=True, gpu_mem_limit="8G", gpu_core_limit=25)
    eve.vgpu_db_url = f"sqlite:///{tmp_path}/vgpu.sqlite"
    with pytest.raises(Told, match="in use by others|Others wait"):
        asyncio.run(eve.start())
    assert node.asked == ["GET /api/gpus?tenant=eve%2F"]  # and no POST
