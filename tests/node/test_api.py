"""vgpud's API: what it does, and what it says to what it can't do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from typing import Any

import pytest
import requests
from support.node import CLI, Node, Worker, wait_until
from support.routes import METHODS, admin_paths, body_of

from jupyter_vgpu.client import Client, DaemonError, gpus_path

GIB = 1 << 30
MIB = 1 << 20


def refused(node: Node, method: str, url: str, body: Any = None) -> tuple[int, str]:
    with pytest.raises(DaemonError) as error:
        node.client.request(method, url, body)
    return error.value.status, str(error.value)


def test_a_tenant_is_created_shown_resized_and_removed(node: Node) -> None:
    tenant = node.tenant("2G", 25, "alice/")
    assert tenant["quota"] == {"memory": 2 * GIB, "cores": 25.0, "policy": "hard"}
    assert node.client.request("GET", "/api/gpus")["gpus"][0]["memory"]["free"] == 6 * GIB
    resized = node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"memory": "3G", "policy": "burst"})
    assert resized["quota"] == {"memory": 3 * GIB, "cores": 25.0, "policy": "burst"}
    assert node.show("alice/")["id"] == tenant["id"]
    found = node.client.request("GET", gpus_path("alice/"))
    assert ([each["id"] for each in found["tenants"]], found["gpus"][0]["slices"]) == ([tenant["id"]], 1)
    assert node.client.request("GET", gpus_path("alice"))["tenants"] == []
    node.client.request("DELETE", f"/api/tenants/{tenant['id']}")
    assert node.client.request("GET", "/api/tenants")["tenants"] == []
    assert node.client.request("GET", "/api/gpus")["gpus"][0]["memory"]["free"] == 8 * GIB


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"name": "t", "memory": "4 potatoes", "cores": 25}, 400, "memory='4 potatoes' is not a size"),
        ({"name": "t", "memory": 0, "cores": 25}, 400, "memory=0 is not a usable size"),
        ({"name": "t", "memory": -1, "cores": 25}, 400, "memory=-1 is not a size"),
        ({"name": "t", "memory": 10**30, "cores": 25}, 400, "is not a usable size"),
        ({"name": "t", "memory": "1G", "cores": 140}, 400, "cores=140 is not a percentage"),
        ({"name": "t", "memory": "1G", "cores": 25, "policy": "soft"}, 400, "give 'hard' or 'burst'"),
        ({"name": "t", "memory": "1G"}, 400, "cores is missing"),
        ({"name": "", "memory": "1G", "cores": 1}, 400, "can't name a tenant"),
        ({"name": "x" * 300, "memory": "1G", "cores": 1}, 400, "can't name a tenant"),
        ({"name": "t", "memory": "1G", "cores": 1, "slot": 3}, 400, "unknown field 'slot': allowed are"),
        ({"name": 7, "memory": "1G", "cores": 1}, 400, "name=7 has the wrong type"),
        ({"name": "t", "memory": "1G", "cores": 1, "gpu": "GPU-none"}, 409, "has no GPU GPU-none"),
        ({"name": "t", "memory": "900G", "cores": 1}, 409, "the largest has 8 GiB"),
        ([], 400, "not a JSON object"),
    ],
)
def test_bad_requests_are_answered_in_words(node: Node, body: Any, status: int, words: str) -> None:
    code, message = refused(node, "POST", "/api/tenants", body)
    assert code == status
    assert words in message
    assert node.client.request("GET", "/api/tenants")["tenants"] == []


def test_unknown_tenants_and_places_are_404(node: Node) -> None:
    assert refused(node, "GET", "/api/tenants/nobody") == (404, "no tenant 'nobody' on this node")
    assert refused(node, "DELETE", "/api/tenants/nobody")[0] == 404
    assert refused(node, "PATCH", "/api/tenants/nobody", {"cores": 5})[0] == 404
    assert refused(node, "GET", "/api/elsewhere") == (404, "nothing at /api/elsewhere")


def test_a_name_is_given_once(node: Node) -> None:
    node.tenant(name="same")
    assert refused(node, "POST", "/api/tenants", {"name": "same", "memory": "1G", "cores": 1})[0] == 409


def test_what_is_promised_is_not_promised_again(node: Node) -> None:
    node.tenant("6G", 80, "first")
    code, message = refused(node, "POST", "/api/tenants", {"name": "second", "memory": "4G", "cores": 10})
    assert code == 409
    assert "Largest free slice: 2 GiB and 20 % of compute on GPU 0" in message
    code, message = refused(node, "PATCH", "/api/tenants/first", {"memory": "9G"})
    assert code == 409
    assert "at most 8 GiB" in message


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff" * 500,
        b"GET\r\n\r\n",
        b"POST /api/tenants HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{nope",
        b"POST /api/tenants HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /api/tenants HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
    ],
)
def test_malformed_http_hurts_nobody(node: Node, data: bytes) -> None:
    answer = node.raw(data)
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0] or b"413" in answer.split(b"\r\n")[0]
    assert node.client.request("GET", "/api/health")["status"] == "ok"


def test_the_admin_socket_is_the_admins_and_a_tenants_is_for_one_answer(node: Node) -> None:
    tenant = node.tenant()
    assert os.stat(node.client.where).st_mode & 0o077 == 0
    inside = Client(f"{tenant['launch']['directory']}/vgpu.sock")
    assert inside.request("GET", "/api/slice")["id"] == tenant["id"]
    with pytest.raises(DaemonError) as error:
        inside.request("POST", "/api/slice")
    assert error.value.status == 405


@pytest.mark.parametrize("path", admin_paths())
def test_a_tenant_reaches_nothing_of_the_admins_api(node: Node, path: str) -> None:
    tenant, other = node.tenant("1G", 20), node.tenant("1G", 20, "other")
    inside = Client(f"{tenant['launch']['directory']}/vgpu.sock")
    before = node.client.request("GET", "/api/tenants")["tenants"]
    for key in (tenant["id"], other["id"]):
        for method in METHODS:
            with pytest.raises(DaemonError) as error:
                inside.request(method, path.format(key), body_of(method))
            assert error.value.status == 404
    after = node.client.request("GET", "/api/tenants")["tenants"]
    assert [each["quota"] for each in after] == [each["quota"] for each in before]
    assert node.client.request("GET", "/api/maintenance")["maintenance"] is None


def test_garbage_on_a_tenants_join_socket_is_answered_and_the_others_go_on(node: Node) -> None:
    hostile, other = node.tenant("1G", 20, "hostile"), node.tenant("1G", 20, "other")
    worker = Worker(node, other)
    path = f"{hostile['launch']['directory']}/join.sock"
    for data in (b"\xff" * 200, b"join", b"reserve -5", b"reserve 99999999999999999999999999", b"shim me", b"x" * 4000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.send(data)
            assert connection.recv(1000).startswith(b"refused ")
    # descriptors that are no listeners
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection, open("/dev/null", "rb") as null:
        connection.connect(path)
        socket.send_fds(connection, [b"join"], [null.fileno()])
        assert connection.recv(1000) == b"refused join comes with one seccomp listener"
    # more connections than anybody needs
    crowd = []
    for _ in range(600):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        crowd.append(connection)
        connection.connect(path)
    assert worker.ask("alloc", bytes=16 * MIB) == {"error": "CUDA_SUCCESS"}
    late = Worker(node, other)  # the daemon has more than a thousand descriptors now
    assert late.close() == 0
    for connection in crowd:
        connection.close()
    assert node.used("other") == 64 * MIB + 16 * MIB
    assert worker.close() == 0


def test_metrics_show_the_same_numbers(node: Node) -> None:
    tenant = node.tenant("1G", 25, 'odd "name"\n'.strip())
    worker = Worker(node, tenant)
    worker.ask("alloc", bytes=32 * MIB)
    answer = node.metrics()
    assert 'jupyter_vgpu_memory_used_bytes{tenant="odd \\"name\\""} 1.00663296e+08' in answer
    assert 'jupyter_vgpu_core_quota_ratio{tenant="odd \\"name\\""} 0.25' in answer
    worker.close()


def test_prometheus_finds_the_metrics_and_nothing_else_on_an_address() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = Node("--emulate", "--emulated-memory=1G", f"--metrics=127.0.0.1:{port}")
    try:
        node.tenant("64M", 25, "alice/")
        url = f"http://127.0.0.1:{port}"
        assert 'jupyter_vgpu_memory_quota_bytes{tenant="alice/"} 6.7108864e+07' in requests.get(f"{url}/metrics").text
        assert requests.get(f"{url}/api/tenants").status_code == 404
        assert requests.delete(f"{url}/api/tenants/alice%2F").status_code == 404
        assert node.show("alice/")
    finally:
        node.stop()


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(AssertionError, match="metrics_address='9414' is no address and port: give one such as"):
        Node("--emulate", "--emulated-memory=1G", "--metrics=9414")


def test_a_second_daemon_in_the_same_directory_says_so(node: Node) -> None:
    result = subprocess.run(
        [*CLI, "node", f"--run-dir={node.run_dir}", "--emulate"], capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 1
    assert "another node daemon runs in" in result.stderr
    assert node.client.request("GET", "/api/health")["status"] == "ok"


def test_ending_the_daemon_ends_the_guard_when_no_slice_is_left(node: Node) -> None:
    guard = node.guard_pid()
    assert node.process
    node.process.terminate()
    assert node.process.wait(15) == 0
    wait_until(lambda: not os.path.exists(f"/proc/{guard}"), 5, "the guard ended too")
    assert not os.path.exists(node.client.where)


def test_a_daemon_that_finds_no_gpu_says_what_to_do(tmp_path: Any) -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("there is a GPU here")
    began = time.monotonic()
    result = subprocess.run(
        [*CLI, "node", f"--run-dir={tmp_path}", f"--data-dir={tmp_path}"], capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 1
    assert "jupyter vgpu node --emulate" in result.stderr
    assert time.monotonic() - began < 20


def test_maintenance_closes_the_node_for_new_slices_and_survives_a_restart(node: Node) -> None:
    tenant = node.tenant()
    said = node.client.request("PUT", "/api/maintenance", {"message": " Restart at 18:00 ", "closed": True})
    assert said["maintenance"]["message"] == "Restart at 18:00"
    joined = "Neustart\u00a0–  um 18:00 \U0001f9d1\u200d\U0001f4bb"  # as people paste it
    said = node.client.request("PUT", "/api/maintenance", {"message": joined, "closed": True})
    assert said["maintenance"]["message"] == "Neustart – um 18:00 \U0001f9d1\u200d\U0001f4bb"
    node.client.request("PUT", "/api/maintenance", {"message": " Restart at 18:00 ", "closed": True})
    words = "this node gives no new slices now: Restart at 18:00"
    assert refused(node, "POST", "/api/tenants", {"name": "b", "memory": "1G", "cores": 5}) == (409, words)
    node.kill()
    node.start()
    assert refused(node, "POST", "/api/tenants", {"name": "b", "memory": "1G", "cores": 5}) == (409, words)
    (gpu,) = node.client.request("GET", "/api/gpus")["gpus"]
    assert (gpu["memory"]["free"], gpu["cores"]["free"], gpu["closed"]) == (0, 0, "Restart at 18:00")
    assert node.show(tenant["id"])["maintenance"]["closed"]
    assert node.client.request("PATCH", f"/api/tenants/{tenant['id']}", {"cores": 20})["quota"]["cores"] == 20
    node.client.request("PUT", "/api/maintenance", {"message": "Soon"})
    node.tenant(name="b", cores=5)
    node.client.request("DELETE", "/api/maintenance")
    assert node.client.request("GET", "/api/maintenance") == {"maintenance": None}
    node.client.request("DELETE", "/api/maintenance")  # it is over already


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"message": ""},
        {"message": "x" * 111},
        {"message": "a\u202eb"},
        {"message": "\u200d"},
        {"message": "x", "closed": "yes"},
    ],
)
def test_maintenance_that_nobody_could_read_is_refused(node: Node, body: dict[str, Any]) -> None:
    assert refused(node, "PUT", "/api/maintenance", body)[0] == 400
    assert node.client.request("GET", "/api/maintenance") == {"maintenance": None}


def test_labels_change_while_a_slice_lives_and_are_kept(node: Node) -> None:
    node.tenant(labels={"a": "1", "b": "2"}, name="x/y")
    path = "/api/tenants/x%2Fy/labels"
    assert node.client.request("PATCH", path, {"a": None, "c": "3"})["labels"] == {"b": "2", "c": "3"}
    node.kill()
    node.start()
    assert node.show("x%2Fy")["labels"] == {"b": "2", "c": "3"}
    for wrong in ({"d": 1}, {"d": "x" * 256}, {str(i): "" for i in range(20)}):
        assert refused(node, "PATCH", path, wrong)[0] == 400
    assert node.show("x%2Fy")["labels"] == {"b": "2", "c": "3"}
    assert refused(node, "PATCH", "/api/tenants/nobody/labels", {})[0] == 404


def test_an_admin_tells_everybody_from_the_command_line(node: Node) -> None:
    def command(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [*CLI, "maintenance", *arguments, f"--run-dir={node.run_dir}"], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout.strip()

    assert command() == (0, "no maintenance")
    assert command("Restart at 18:00", "--close") == (0, "maintenance: Restart at 18:00 (no new slices)")
    shown = subprocess.run([*CLI, "status", f"--run-dir={node.run_dir}"], capture_output=True, text=True, check=True)
    assert "maintenance: Restart at 18:00 (no new slices)" in shown.stdout
    assert json.loads(command("--json")[1])["message"] == "Restart at 18:00"
    assert command("--over") == (0, "no maintenance")
    assert command("--json") == (0, "null")
    assert command("--close")[0] == command("x", "--over")[0] == 2


def test_a_slice_goes_to_the_gpu_that_it_asks_for_and_may_be_alone_there() -> None:
    options = ["--emulate", "--emulated-memory=8G", "--emulated-gpus=3"]
    node = Node(*options, "--NodeApp.gpu_labels={'2': ['teaching']}")
    try:
        assert node.tenant(name="a", cores=10, model="device 1")["gpu"]["index"] == 1
        assert node.tenant(name="b", cores=10, model="TEACHING")["gpu"]["index"] == 2
        alone = node.tenant(name="c", cores=10, exclusive=True)
        assert alone["gpu"]["index"] == 0
        assert alone["quota"]["exclusive"] is True
        gpus = node.client.request("GET", "/api/gpus")["gpus"]
        assert [(gpu["taken"], gpu["memory"]["free"] == 0, gpu["labels"]) for gpu in gpus] == [
            *((True, True, []), (False, False, []), (False, False, ["teaching"])),
        ]
        node.kill()
        node.start()
        words = "no GPU that is large enough is without slices now"
        status, said = refused(
            node, "POST", "/api/tenants", {"name": "d", "memory": "1G", "cores": 5, "exclusive": True}
        )
        assert (status, words in said) == (409, True)
        status, said = refused(node, "POST", "/api/tenants", {"name": "d", "memory": "1G", "cores": 5, "gpu": "0"})
        assert (status, "no GPU has 1 GiB" in said) == (409, True)
        status, said = refused(node, "POST", "/api/tenants", {"name": "d", "memory": "1G", "cores": 5, "model": "H100"})
        assert (status, "no GPU called 'H100'" in said) == (409, True)
        assert node.client.request("PATCH", "/api/tenants/c", {"cores": 20})["quota"]["exclusive"] is True
        status, said = refused(node, "PATCH", "/api/tenants/c", {"exclusive": False})
        assert (status, said) == (409, "c stays where it is: model and exclusive are for a new slice")
        node.client.request("DELETE", "/api/tenants/c")
        assert node.tenant(name="d", cores=100, exclusive=True)["gpu"]["index"] == 0
    finally:
        node.stop()


def refusal_of(tmp_path: Any, option: str) -> str:
    """What a daemon that does not start with it says."""
    command = [*CLI, "node", "--emulate", f"--run-dir={tmp_path}/run", f"--data-dir={tmp_path}/data", option]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    return done.stderr


def test_so_much_more_is_promised_as_the_admin_says_and_memory_and_compute_apart() -> None:
    made = Node("--emulate", "--emulated-memory=4G", "--NodeApp.memory_overcommit=1.5", "--NodeApp.core_overcommit=2.0")
    try:
        gpu = made.client.request("GET", "/api/gpus")["gpus"][0]
        assert (gpu["memory"]["total"], gpu["cores"]["total"]) == (6 * GIB, 200)
        first, second = made.tenant("3G", 100, "first"), made.tenant("3G", 90, "second")
        assert refused(made, "POST", "/api/tenants", {"name": "third", "memory": "1G", "cores": 10})[0] == 409
        # what is promised beyond what there is, is refused by the card when all of it is asked for
        workers = [Worker(made, tenant) for tenant in (first, second)]
        took = [worker.ask("fill", bytes=64 * MIB)["blocks"] for worker in workers]
        assert sum(took) * 64 * MIB + 2 * 64 * MIB <= 4 * GIB
        assert took[0] * 64 * MIB >= 3 * GIB - 128 * MIB
        assert min(took) > 0
        for worker in workers:
            worker.close()
        # of compute each has its part of what there is
        made.client.request("DELETE", f"/api/tenants/{second['id']}")
        made.tenant("3G", 100, "third")
        assert refused(made, "POST", "/api/tenants", {"name": "fourth", "memory": "64M", "cores": 1})[0] == 409
    finally:
        made.stop()


def test_a_label_of_a_gpu_that_is_not_there_is_told(tmp_path: Any) -> None:
    for labels, words in (
        ("{'7': ['x']}", "gpu_labels names GPU '7', which this node does not share"),
        *((f"{{'0': {wrong}}}", "is no list of labels") for wrong in ("'x'", "5", "None")),
    ):
        assert words in refusal_of(tmp_path, f"--NodeApp.gpu_labels={labels}")


def test_an_option_that_means_nothing_is_not_passed_over(tmp_path: Any) -> None:
    for option, said in (
        ("--cards=2", "--cards"),
        ("--NodeApp.memory_overcomit=2", "NodeApp.memory_overcomit"),
        ("start", "start"),
    ):
        words = f"{said} is no option: 'jupyter vgpu node --help-all' tells which there are"
        assert words in refusal_of(tmp_path, option)


def test_mps_is_for_gpus_that_are_there_and_real(tmp_path: Any) -> None:
    for option, words in (
        ("--NodeApp.mps_gpus=['7']", "mps_gpus names GPU '7', which this node does not share; it shares: 0 (GPU-"),
        ("--NodeApp.mps_gpus=['0']", "mps_gpus needs NVIDIA's Multi-Process Service, and emulated GPUs have none"),
        ("--NodeApp.gpu_labels={'0': ['mps']}", "has 'MPS', which mps_gpus gives: take another name"),
    ):
        assert words in refusal_of(tmp_path, option)
