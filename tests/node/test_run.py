"""`jupyter vgpu run` and `status`: a slice without a hub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.node import CLI, Node, wait_until


def run(node: Node, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "run", "--run-dir", str(node.run_dir), *arguments], capture_output=True, text=True, timeout=60, **more
    )  # type: ignore[call-overload,no-any-return]


def tenants(node: Node) -> list[str]:
    return [tenant["name"] for tenant in node.client.request("GET", "/api/tenants")["tenants"]]


@pytest.mark.parametrize(
    ("code", "exit_code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)]
)
def test_the_exit_code_is_the_commands(node: Node, code: str, exit_code: int) -> None:
    assert run(node, "--mem", "1G", "--cores", "25", "--", "sh", "-c", code).returncode == exit_code
    assert tenants(node) == []


def test_a_command_that_is_not_there(node: Node) -> None:
    result = run(node, "--mem", "1G", "--cores", "25", "--", "/no/such/program")
    assert result.returncode == 127
    assert "/no/such/program: No such file or directory" in result.stderr
    assert tenants(node) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mem", "4 potatoes", "--cores", "25"), "memory='4 potatoes' is not a size"),
        (("--mem", "1G", "--cores", "140"), "cores='140' is not a percentage of one GPU"),
        (("--mem", "90G", "--cores", "5"), "no GPU here is large enough"),
    ],
)
def test_a_slice_that_cannot_be_had_is_refused_in_words(node: Node, arguments: tuple[str, ...], words: str) -> None:
    result = run(node, *arguments, "--", "true")
    assert result.returncode == 125
    assert words in result.stderr


def test_without_a_daemon_it_says_how_to_start_one() -> None:
    result = subprocess.run(
        [*CLI, "run", "--run-dir", "/nowhere", "--mem", "1G", "--cores", "5", "--", "true"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 125
    assert "start it with 'jupyter vgpu node'" in result.stderr


def test_a_killed_runner_leaves_no_slice(node: Node) -> None:
    process = subprocess.Popen(
        [*CLI, "run", "--run-dir", str(node.run_dir), "--mem", "1G", "--cores", "5", "--", "sleep", "77.7"]
    )
    wait_until(lambda: tenants(node), 10, "the slice is there")
    process.kill()
    process.wait()
    wait_until(lambda: tenants(node) == [], 5, "the slice went with its runner")
    assert subprocess.run(["pgrep", "-f", "sleep 77.7"], capture_output=True).stdout == b""  # and so did the command


def test_signals_reach_the_command(node: Node) -> None:
    script = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\nprint('up', flush=True)\ntime.sleep(30)"
    process = subprocess.Popen(
        [
            *CLI,
            "run",
            "--run-dir",
            str(node.run_dir),
            "--mem",
            "1G",
            "--cores",
            "5",
            "--",
            sys.executable,
            "-c",
            script,
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 5


def test_status_outside_and_inside_a_slice(node: Node) -> None:
    node.tenant("1G", 25, "alice/")
    outside = subprocess.run([*CLI, "status", "--json", "--run-dir", str(node.run_dir)], capture_output=True, text=True)
    assert json.loads(outside.stdout)["tenants"][0]["name"] == "alice/"
    inside = run(node, "--mem", "512M", "--cores", "5", "--", *CLI, "status", "--json")
    view = json.loads(inside.stdout)
    assert view["quota"]["memory"] == 512 << 20
    assert "alice" not in inside.stdout  # nothing of the neighbour
    assert (
        "alice/"
        in subprocess.run([*CLI, "status", "--run-dir", str(node.run_dir)], capture_output=True, text=True).stdout
    )


def test_a_hundred_programs_one_after_the_other_leave_the_daemon_as_it_was(node: Node) -> None:
    """Listeners and processes are let go of: descriptors do not pile up."""
    assert node.process
    tenant = node.tenant("1G", 50)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{node.guard_pid()}/fd"))

    def once() -> None:
        assert node.spawn(tenant, "true").wait(10) == 0

    once()
    before = descriptors()
    for _ in range(100):
        once()
    time.sleep(0.2)
    once()
    assert descriptors() < before + 10
