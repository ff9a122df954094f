"""The command `jupyter vgpu` and its subcommands."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .. import __version__
from ..client import Client, DaemonError
from ..inside import NoSlice, slice_client
from ..native import NativeMissing
from ..paths import ADMIN_SOCKET, ENV_SLICE_DIR, default_run_dir
from ..quotas import Policy, Quota, QuotaError
from . import doctor, maintenance, run, status, top

_OK, _FAILED = 0, 1
_INTERVALS = (0.2, 60.0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jupyter vgpu", description="Slices of a GPU for notebooks.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("node", help="run the node daemon (see 'jupyter vgpu node --help')", add_help=False)

    show = commands.add_parser("status", help="show GPUs and slices; inside a slice, that slice")
    show.add_argument("--json", action="store_true", help="print what the daemon said, as JSON")

    live = commands.add_parser("top", help="show the same live, until Ctrl-C")
    live.add_argument("--interval", type=_seconds, default=1.0, metavar="SECONDS", help="0.2 to 60; 1 if not given")
    live.add_argument("--json", action="store_true", help="print what 'status --json' does, a line each time")

    runner = commands.add_parser(
        "run",
        help="run a command in a slice, without a hub",
        epilog="Exit code: the command's own; 125 when there is no slice for it.",
    )
    runner.add_argument("--mem", required=True, metavar="SIZE", help="GPU memory, such as 4G")
    runner.add_argument("--cores", required=True, metavar="PERCENT", help="share of the GPU's compute, such as 25")
    runner.add_argument(
        "--policy",
        default=str(Policy.HARD),
        choices=[str(p) for p in Policy],
        help="hard: never above its percent; burst: and what is idle",
    )
    runner.add_argument("--gpu", metavar="GPU", help="only on this one: its index or UUID")
    runner.add_argument(
        "--model", default="", metavar="NAME", help="only on a GPU with these words in its name, or as its label"
    )
    runner.add_argument("--exclusive", action="store_true", help="with nobody else on the GPU")
    runner.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")

    told = commands.add_parser(
        "maintenance",
        help="tell everybody who has a slice here, and close the node for new ones",
        epilog="Slices that there are go on. Without a message: show what is told now.",
    )
    told.add_argument("message", nargs="?", metavar="MESSAGE", help="what they read, such as 'Restart at 18:00'")
    told.add_argument("--close", action="store_true", help="give no new slices meanwhile")
    told.add_argument("--over", action="store_true", help="all is as usual again")
    told.add_argument("--json", action="store_true", help="print what is told now as JSON; null: nothing")

    check = commands.add_parser("doctor", help="say what works on this machine, and what to do where it does not")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")

    for command in (show, live, runner, told, check):
        command.add_argument("--run-dir", type=Path, default=default_run_dir(), help="the node daemon's directory")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["node"]:
        from ..node.app import NodeApp  # the user's image has no daemon, nor what it needs

        NodeApp.launch_instance(argv=arguments[1:])
        return _OK
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        inside = _slice_dir() is not None
        if options.command == "status":
            return status.show(_nearest_client(options.run_dir), inside, in_json=options.json)
        if options.command == "top":
            show_live = top.stream if options.json else top.watch
            return show_live(_nearest_client(options.run_dir), inside, options.interval)
        if options.command == "maintenance":
            if (options.over and (options.message or options.close)) or (options.close and not options.message):
                parser.error("maintenance: give a message, with --close or without, or --over alone")
            admin = Client(options.run_dir / ADMIN_SOCKET)
            return maintenance.set_or_show(
                admin, options.message, close=options.close, over=options.over, as_json=options.json
            )
        if options.command == "doctor":
            return doctor.report(options.run_dir, as_json=options.json)
        command = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
        if not command:
            parser.error("run: which command? Write it after --")
        if _slice_dir():
            print("jupyter vgpu run: this is a GPU slice already: run the command as it is", file=sys.stderr)
            return run.NO_SLICE
        # say what is wrong with it, daemon or not
        quota = Quota.parse(options.mem, options.cores, options.policy, options.model, options.exclusive)
        request = {**quota.as_json(), "gpu": options.gpu}
        return run.run(Client(options.run_dir / ADMIN_SOCKET), request, command)
    except (DaemonError, NoSlice, QuotaError, NativeMissing) as error:
        print(f"jupyter vgpu {options.command}: {error}", file=sys.stderr)
        return run.NO_SLICE if options.command == "run" else _FAILED


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not _INTERVALS[0] <= seconds <= _INTERVALS[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is no interval: give seconds from 0.2 to 60")
    return seconds


def _slice_dir() -> str | None:
    return os.environ.get(ENV_SLICE_DIR)


def _nearest_client(run_dir: Path) -> Client:
    """The slice's, or the daemon's. Raises NoSlice in a user's server without a GPU."""
    socket = run_dir / ADMIN_SOCKET
    if _slice_dir() or ("JUPYTERHUB_USER" in os.environ and not os.access(socket, os.W_OK)):
        return slice_client()
    return Client(socket)


if __name__ == "__main__":
    sys.exit(main())
