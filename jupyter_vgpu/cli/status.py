"""`jupyter vgpu status`: what is shared, and who holds what."""

from __future__ import annotations

import json

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .. import hours
from ..client import MAINTENANCE_PATH, Client, Json
from ..quotas import format_bytes, format_percent
from . import maintenance


def ask(client: Client, inside: bool) -> Json:
    """The node's state, or inside a slice that slice's. Raises DaemonError."""
    if inside:
        view = client.request("GET", "/api/slice")
        return {"health": None, "maintenance": view["maintenance"], "gpus": [], "tenants": [view]}
    return {
        "health": client.request("GET", "/api/health"),
        "maintenance": client.request("GET", MAINTENANCE_PATH)["maintenance"],
        "gpus": client.request("GET", "/api/gpus")["gpus"],
        "tenants": client.request("GET", "/api/tenants")["tenants"],
    }


def as_json(state: Json, inside: bool) -> Json:
    """For scripts: inside a slice that slice alone."""
    return dict(state["tenants"][0]) if inside else state


def show(client: Client, inside: bool, in_json: bool) -> int:
    """Print it. Returns the exit code."""
    state = ask(client, inside)
    if in_json:
        print(json.dumps(as_json(state, inside), indent=2))
    else:
        Console().print(draw(state))
    return 0


def draw(state: Json) -> Group:
    """As tables."""
    parts: list[RenderableType] = []
    if health := state["health"]:
        guard = health["guard"]
        parts.append(
            f"vgpud {health['status']}, backend {health['backend']}, guard {guard['pid']}"
            f" ({guard['restarts']} restarts), up {health['uptime_s']:.0f} s"
        )
        parts.append(_gpu_table(state["gpus"]))
    if state["maintenance"]:
        parts.append(Text(maintenance.describe(state["maintenance"]), style="yellow"))
    parts.append(_tenant_table(state["tenants"]))
    if not state["health"]:  # inside a slice there is one
        parts += _hours(state["tenants"][0])
    parts += [_process_table(tenant) for tenant in state["tenants"] if tenant["processes"]]
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("GPU", "name", "tenant", "tier", "policy") else "right")
    return table


def _gpu_table(gpus: list[Json]) -> Table:
    table = _table("GPUs", "GPU", "name", "memory", "promised", "free", "compute free")
    for gpu in gpus:
        memory, cores = gpu["memory"], gpu["cores"]
        table.add_row(
            str(gpu["index"]),
            gpu["name"],
            format_bytes(memory["total"]),
            format_bytes(memory["reserved"]),
            format_bytes(memory["free"]),
            format_percent(cores["free"]),
        )
    return table


def _tenant_table(tenants: list[Json]) -> Table:
    table = _table("Slices", "tenant", "GPU", "memory", "of", "compute", "of", "policy", "tier", "refused")
    for tenant in tenants:
        quota, usage = tenant["quota"], tenant["usage"]
        table.add_row(
            tenant["name"],
            str(tenant["gpu"]["index"]),
            format_bytes(usage["memory"]),
            format_bytes(quota["memory"]),
            format_percent(usage["cores"]),
            format_percent(quota["cores"]),
            quota["policy"],
            tenant["tier"],
            str(tenant["refusals"]["count"]),
        )
    return table


def _hours(tenant: Json) -> list[str]:
    said = hours.told(tenant["labels"])
    return [f"{hours.Balance(said['spent'], said['allowed'])}"] if said else []


def _process_table(tenant: Json) -> Table:
    table = _table(f"Processes of {tenant['name']}", "pid", "name", "memory", "compute")
    for process in tenant["processes"]:
        name = process["name"] + (" (without the shim)" if process["pid"] in tenant["outside"] else "")
        table.add_row(str(process["pid"]), name, format_bytes(process["memory"]), format_percent(process["cores"]))
    return table
