"""vgpud's API for a hub on another machine: certificates on both sides, or nothing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.jupyter import free_port
from support.node import CLI, Node

from jupyter_vgpu.client import Client, DaemonAway, Tls


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def where() -> str:
    return f"127.0.0.1:{free_port()}"


def arguments(where: str, tls: Tls) -> list[str]:
    files = {"cert": tls.cert, "key": tls.key, "ca": tls.ca}
    return [f"--api={where}", *(f"--NodeApp.api_{name}={path}" for name, path in files.items())]


@pytest.fixture(scope="module")
def served(authority: Authority, where: str) -> Iterator[Node]:
    made = Node("--emulate", *arguments(where, authority.node()))
    yield made
    made.stop()


def test_the_hub_does_all_that_it_does_on_the_socket(served: Node, where: str, authority: Authority) -> None:
    hub = Client(f"https://{where}", tls=authority.hub())
    made = hub.request("POST", "/api/tenants", {"name": "alice/", "memory": "1G", "cores": 25})
    assert [tenant["id"] for tenant in served.client.request("GET", "/api/tenants")["tenants"]] == [made["id"]]
    assert hub.request("PATCH", f"/api/tenants/{made['id']}", {"cores": 50})["quota"]["cores"] == 50
    hub.request("DELETE", f"/api/tenants/{made['id']}")
    assert served.client.request("GET", "/api/tenants")["tenants"] == []


def said_to(where: str, context: ssl.SSLContext | None) -> bytes:
    """What somebody is answered who shows nothing."""
    host, port = where.split(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5) as plain:
        connection = context.wrap_socket(plain, server_hostname=host) if context else plain
        connection.sendall(b"GET /api/tenants HTTP/1.1\r\nHost: x\r\n\r\n")
        return connection.recv(1000)
    return b""


def test_nobody_else_gets_in(served: Node, where: str, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    hub = authority.hub()
    forged = stranger.hub()
    for tls in (
        Tls(str(authority.ca), forged.cert, forged.key),  # of another authority
        authority.node(),  # another node's: it is for servers alone
        Tls(str(stranger.ca), hub.cert, hub.key),  # the hub, which does not believe this daemon
    ):
        with pytest.raises(DaemonAway, match=f"https://{where}"):
            Client(f"https://{where}", tls=tls).request("GET", "/api/tenants")
    nothing_to_show = ssl.create_default_context(cafile=str(authority.ca))
    assert said_to(where, nothing_to_show) == b""
    assert b"200" not in said_to(where, None)
    assert Client(f"https://{where}", tls=hub).request("GET", "/api/health")["status"] == "ok"


def test_a_name_that_is_not_the_nodes_own_is_not_believed(served: Node, where: str, authority: Authority) -> None:
    other = where.replace("127.0.0.1", "localhost")
    with pytest.raises(DaemonAway, match=r"localhost.*certificate"):
        Client(f"https://{other}", tls=authority.hub()).request("GET", "/api/health")


@pytest.mark.parametrize("lacking", ["cert", "key", "ca"])
def test_without_certificates_the_daemon_does_not_start(lacking: str, authority: Authority, tmp_path: Path) -> None:
    given = [
        each for each in arguments("127.0.0.1:1", authority.node()) if not each.startswith(f"--NodeApp.api_{lacking}")
    ]
    directories = [f"--run-dir={tmp_path}/run", f"--data-dir={tmp_path}/data"]
    ended = subprocess.run(
        [*CLI, "node", "--emulate", *directories, *given], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    assert f"needs api_{lacking}" in ended.stderr


def test_a_key_of_another_certificate_is_said(authority: Authority, tmp_path: Path) -> None:
    tls = authority.node()
    given = arguments("127.0.0.1:1", Tls(tls.ca, tls.cert, authority.hub().key))
    directories = [f"--run-dir={tmp_path}/run", f"--data-dir={tmp_path}/data"]
    ended = subprocess.run(
        [*CLI, "node", "--emulate", *directories, *given], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    assert "can't be used together" in ended.stderr
