"""The server extension in a real Jupyter server."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.node import Node, Worker
from tornado.httpclient import HTTPClientError

from jupyter_vgpu.turn import LABEL, Stage, Turn

MIB = 1 << 20

Fetch = Callable[..., Awaitable[Any]]


@pytest.fixture
def jp_server_config() -> dict[str, Any]:
    return {"ServerApp": {"jpserver_extensions": {"jupyter_vgpu": True}, "allow_unauthenticated_access": False}}


async def slice_view(jp_fetch: Fetch) -> dict[str, Any]:
    answer = await jp_fetch("vgpu", "slice")
    view: dict[str, Any] = json.loads(answer.body)
    return view


async def test_without_a_hub_it_says_so(jp_fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VGPU_SLICE_DIR", raising=False)
    monkeypatch.delenv("JUPYTERHUB_API_TOKEN", raising=False)
    view = await slice_view(jp_fetch)
    assert (view["kind"], view["reason"]) == ("none", "not-under-hub")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "t")
    assert (await slice_view(jp_fetch))["reason"] == "no-slice"


async def test_a_server_without_a_gpu_hears_of_its_users_turn(
    jp_fetch: Fetch, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VGPU_SLICE_DIR", raising=False)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "t")
    turn = Turn("", Stage.WAITING, 2, 10)
    board = node.client.request("POST", "/api/boards", {"name": "a/", "labels": {LABEL: turn.as_label()}})
    assert "queue" not in await slice_view(jp_fetch)
    monkeypatch.setenv("VGPU_BOARD_DIR", board["directory"])
    monkeypatch.setenv("VGPU_QUEUE_URL", "/services/vgpu/queue")
    told = await slice_view(jp_fetch)
    assert (told["kind"], told["reason"], told["queue"]["number"]) == ("none", "no-slice", 2)
    assert (told["queue"]["here"], told["queue"]["url"]) == (True, "/services/vgpu/queue")
    monkeypatch.setenv("JUPYTERHUB_SERVER_NAME", "second")
    assert not (await slice_view(jp_fetch))["queue"]["here"]
    node.client.request("PATCH", f"/api/boards/{board['id']}/labels", {LABEL: None})
    assert (await slice_view(jp_fetch))["queue"] is None
    node.kill()
    away = await slice_view(jp_fetch)
    assert (away["reason"], "queue" in away) == ("no-slice", False)  # nothing new is known
    node.start()


async def test_the_slice_with_its_processes(jp_fetch: Fetch, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = node.tenant("1G", 25)
    monkeypatch.setenv("VGPU_SLICE_DIR", tenant["launch"]["directory"])
    worker = Worker(node, tenant)
    worker.ask("alloc", bytes=32 * MIB)
    view = await slice_view(jp_fetch)
    assert view["quota"] == {"memory": 1 << 30, "cores": 25.0, "policy": "hard"}
    assert view["usage"]["memory"] == 96 * MIB
    assert [(row["kind"], row["pids"], row["memory"]) for row in view["holders"]] == [("other", [worker.pid], 96 * MIB)]
    assert "id" not in view  # the tenant's id is the name of a directory that others must not guess
    assert tenant["id"] not in json.dumps(view)
    worker.close()
    node.kill()
    away = await slice_view(jp_fetch)
    assert (away["kind"], away["reason"]) == ("none", "daemon-away")
    node.start()
    assert (await slice_view(jp_fetch))["kind"] == "slice"


async def test_a_refusal_is_told_with_whom_it_was_about(
    jp_fetch: Fetch, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = node.tenant("1G", 25)
    monkeypatch.setenv("VGPU_SLICE_DIR", tenant["launch"]["directory"])
    worker = Worker(node, tenant)
    worker.ask("alloc", bytes=2048 * MIB)
    refusals = node.show("tenant")["refusals"]
    assert refusals["count"] == 1  # though the guard tried again after it had looked for what is free
    line = refusals["recent"][0]["line"]
    assert line[0] == worker.pid
    assert os.getpid() in line  # its launcher's parent: so a kernel is found by what it started
    (told,) = (await slice_view(jp_fetch))["refusals"]["recent"]
    assert (told["asker"]["kind"], told["bytes"], told["fits_never"], told["ways"]) == ("other", 2048 * MIB, True, [])
    name = told["asker"]["name"]
    worker.close()
    (again,) = (await slice_view(jp_fetch))["refusals"]["recent"]
    assert again["asker"]["name"] == name  # though its number may be another's by now


async def test_nobody_sees_it_without_a_login(jp_fetch: Fetch) -> None:
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch("vgpu", "slice", headers={"Authorization": "token wrong"})
    assert error.value.code == 403


async def test_it_only_answers_questions(jp_fetch: Fetch) -> None:
    for method in ("POST", "PUT", "DELETE"):
        with pytest.raises(HTTPClientError) as error:
            await jp_fetch("vgpu", "slice", method=method, allow_nonstandard_methods=True)
        assert error.value.code == 405
