"""The results' file: a list of rows, one a measured quantity, written by the benchmarks themselves."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Machine:
    """What the numbers were taken on."""

    device: str
    driver: str


@dataclass
class Row:
    """One quantity; `native`, `hami_core` and `mps` are the same quantity there, None where it was not measured."""

    id: str
    value: float
    unit: str
    better: Literal["lower", "higher"]
    detail: str
    native: float | None = None
    hami_core: float | None = None
    mps: float | None = None


def write(name: str, machine: Machine, rows: list[Row]) -> Path:
    """Put the rows into results/<name>.json, in place of those of the same ids; the others stay."""
    path = RESULTS / f"{name}.json"
    old = json.loads(path.read_text()) if path.exists() else []
    date = datetime.now(UTC).date().isoformat()
    made = [{**_rounded(row), "device": machine.device, "driver": machine.driver, "date": date} for row in rows]
    ids = {row.id for row in rows}
    kept = [row for row in old if row["id"] not in ids]
    path.parent.mkdir(exist_ok=True)
    kept = [row for row in kept if row["id"] not in _SUMMARIES]
    made += [_summary(name, kept + made) for name in _SUMMARIES if any(_is_error(row) for row in kept + made)]
    path.write_text(json.dumps(sorted(kept + made, key=lambda row: str(row["id"])), indent=2) + "\n")
    return path


def show(rows: list[Row]) -> None:
    """A table on the terminal."""
    table = Table("id", "value", "unit", "native", "HAMi-core", "MPS", "detail")
    for row in rows:
        numbers = ("" if x is None else f"{x:.4g}" for x in (row.native, row.hami_core, row.mps))
        table.add_row(row.id, f"{row.value:.4g}", row.unit, *numbers, row.detail)
    Console(width=200).print(table)


_SUMMARIES = {"compute.mean_error_points": statistics.mean, "compute.worst_error_points": max}


def _is_error(row: dict[str, Any]) -> bool:
    return str(row["id"]).startswith("compute.") and str(row["id"]).count(".") > 2


def _summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all errors that the file has, of ours and of each peer."""
    errors = [row for row in rows if _is_error(row)]
    summary: dict[str, Any] = {**errors[-1], "id": name, "detail": f"over {len(errors)} pairs of percent and workload"}
    for key in ("value", "native", "hami_core", "mps"):
        values = [row[key] for row in errors if row[key] is not None]
        summary[key] = round(_SUMMARIES[name](values), 4) if values else None
    return summary


def _rounded(row: Row) -> dict[str, object]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(row).items()}
