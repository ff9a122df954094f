"""The machines with GPUs: where each one's daemon and Docker Engine are, and which is asked first for a slice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyter_vgpu.client import Client, Tls
from jupyter_vgpu.quotas import Quota, is_roomy

from .turns import Space

Json = dict[str, Any]
ONLY = "node"
"""What the one node is called where the config names none."""
NODE_KEY, TENANT_KEY, BOARD_KEY = "vgpu_node", "vgpu_tenant", "vgpu_board"
"""Of a spawner's state: where the server runs, and which slice, or which notice board, is its."""


class Packing(StrEnum):
    """Which node a slice goes to. `binpack`: the first with room. `spread`: while over a quarter of the GPUs are empty
    where the emptiest has most free; then as `binpack`."""

    SPREAD = "spread"
    BINPACK = "binpack"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One machine. vgpud: its daemon's socket, or `https://host:port`. docker: its Docker Engine; empty: the hub's own.

    ca, cert, key: files of PEM for both, where they are on the network. ip: the node's own address, on which its
    servers' ports are opened.
    """

    name: str
    vgpud: str
    ca: str = ""
    cert: str = ""
    key: str = ""
    docker: str = ""
    ip: str = ""

    @property
    def is_remote(self) -> bool:
        return self.vgpud.startswith("https://")

    @property
    def tls(self) -> Tls | None:
        return Tls(self.ca, self.cert, self.key) if self.ca else None

    def check_files(self) -> None:
        """Raises ValueError for one that is not there. Later it may be, while it is renewed."""
        for name in sorted(_FILES):
            path = getattr(self, name)
            if path and not Path(path).is_file():
                raise ValueError(f"vgpu_nodes[{self.name!r}]: {name}={path!r} is no file")

    def client(self) -> Client:
        return Client(self.vgpud, tls=self.tls if self.is_remote else None)


_FILES = {"ca", "cert", "key"}


def parse_nodes(values: Mapping[str, Any], socket: str, *, has_engines: bool) -> tuple[NodeConfig, ...]:
    """Of the trait `vgpu_nodes`; where it is empty, the one node behind `socket`.

    has_engines: the spawner can start servers on another machine. Raises ValueError.
    """
    if not values:
        return (NodeConfig(ONLY, socket),)
    nodes = tuple(_parse(name, entry, has_engines) for name, entry in values.items())
    for where in ("vgpud", "docker"):
        given = [getattr(node, where) for node in nodes if getattr(node, where)]
        if twice := [each for each in given if given.count(each) > 1]:
            raise ValueError(f"vgpu_nodes has {twice[0]!r} twice: one node has one name")
    return nodes


def _parse(name: str, entry: Any, has_engines: bool) -> NodeConfig:
    known = {each.name for each in fields(NodeConfig)} - {"name"}
    where = f"vgpu_nodes[{str(name)[:40]!r}]"
    if not isinstance(name, str) or not name or len(name) > 60 or not name.isprintable():
        raise ValueError(f"{where}: a node's name has 1 to 60 printable characters")
    if not isinstance(entry, Mapping) or not entry.get("vgpud") or not set(entry) <= known:
        raise ValueError(f"{where}={entry!r}: give 'vgpud', and perhaps {', '.join(sorted(known - {'vgpud'}))}")
    if not all(isinstance(value, str) for value in entry.values()):
        raise ValueError(f"{where}={entry!r}: every value is a text")
    node = NodeConfig(name, **entry)
    _check_way(where, node)
    if node.is_remote and not has_engines:
        raise ValueError(f"{where} is another machine, where this spawner starts no servers: take vgpu-docker")
    if node.is_remote != bool(node.docker):
        raise ValueError(
            f"{where}: 'vgpud' and 'docker' are on one machine: give both on the network, or a socket and no 'docker'"
        )
    if node.docker and not node.ip:
        raise ValueError(f"{where} lacks 'ip': the node's address, where the hub's proxy reaches its servers")
    return node


def _check_way(where: str, node: NodeConfig) -> None:
    if "://" in node.vgpud:
        parts = urlsplit(node.vgpud)
        if not node.is_remote or not parts.hostname or not _port(node.vgpud):
            raise ValueError(f"{where}: vgpud={node.vgpud!r} is neither a socket's path nor https://host:port")
        if lacking := sorted(name for name in _FILES if not getattr(node, name)):
            raise ValueError(f"{where} lacks {', '.join(lacking)}: vgpud on the network speaks with certificates alone")
    if node.docker and not re.fullmatch(r"(tcp|https)://[^/@]+:\d+", node.docker):
        raise ValueError(f"{where}: docker={node.docker!r} is no engine on the network: give tcp://host:port")


def _port(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        return None


def as_settings(nodes: Iterable[NodeConfig]) -> list[dict[str, str]]:
    """For JSON; `NodeConfig(**each)` reads it."""
    return [asdict(node) for node in nodes]


def in_turn(quota: Quota, gpus: Iterable[Json], names: Iterable[str], packing: Packing) -> list[str]:
    """The nodes with room for a slice, the one to ask first first. names: as the config has them. Pure."""
    best: dict[str, int] = {}
    slices: list[int] = []
    alone = False
    for gpu in gpus:
        space = Space.from_json(gpu)
        if space.is_meant(quota):
            slices.append(space.slices)
            alone |= space.is_for_one(quota)
        if space.fits(quota):
            # who takes all of it gets the smallest
            room = -space.memory_total if space.is_for_one(quota) else space.memory_free
            best[gpu["node"]] = max(room, best.get(gpu["node"], room))
    order = [name for name in names if name in best]
    if packing is Packing.BINPACK or not (alone or is_roomy(slices)):
        return order
    return sorted(order, key=lambda name: -best[name])
