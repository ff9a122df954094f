"""docs/benchmarks.md and its plots, made from the results' files: `make docs`.

python benchmarks/report.py [--plots]: writes the page; with --plots the pictures too (needs matplotlib).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "images" / "compute.svg"

SECTIONS = {
    "memory.": "Memory: what can be taken under a quota of 4 GiB",
    "compute.": "Compute: error of a limited tenant's share, in points",
    "share.": "Several tenants, all saturating",
    "latency.": "A short kernel beside a saturating neighbour",
    "overhead.": "Cost",
    "own.": "The shim's own part of the cost in tier `guard`",
    "shim.": "Tier `shim`: the same without the guard",
    "together.": "Slices that share a GPU by MPS, beside slices that take turns",
    "fault.": "Faults and changes",
    "attack.": "Hostile tenants",
    "guard.": "Without a GPU: the guard itself",
    "hub.": "Without a GPU: the hub's side under load",
    "panel.": "Without a GPU: the student's panel",
}
NOTES = {
    "memory.": "Bytes that the whole GPU had less, by NVML, when the program was refused: its context is in it.",
    "panel.": "Nothing is done for a page that nobody sees, and in the server for one that asks nothing.",
    "compute.": "Counted in kernels of known work, over the rate of the same process with all of the GPU. MPS limits "
    "the number of multiprocessors instead of time; it was measured for plain kernels. HAMi-core: commit 8f3a89c.",
    "latency.": "A 36 us kernel every 50 ms, to the end of its synchronisation. The bare driver takes 0.7 to "
    "2.5 ms from machine to machine. See [scheduling](scheduling.md).",
    "overhead.": "`.ratio`: rate in a slice over native, in pairs. Allocating and freeing are two guarded calls.",
    "own.": "The same slice of 100 % with the shim and (native) without it, in pairs. Who makes a client without the "
    "shim is held still for it: some tenths of a millisecond of a context.",
    "shim.": "Memory and compute as above, one or two stretches of 2 s (34 ms kernels: 5 s) a percent. Calls: in a "
    "slice of 99 %, for with the whole GPU nothing is paced; pairs of processes differ by as much as they show.",
    "attack.": "Bytes by NVML for the whole GPU: each of the 16 contexts has some 7 MiB that are no allocation.",
}


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| id | jupyter-vgpu | native | HAMi-core | MPS | unit | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        numbers = [_number(row[key], row["unit"]) for key in ("value", "native", "hami_core", "mps")]
        unit = "" if row["unit"] == "bytes" else row["unit"]
        detail = row["detail"] if row["unit"] != "bytes" else ""
        lines.append(f"| `{row['id']}` | {' | '.join(numbers)} | {unit} | {detail} |")
    return lines


def page() -> str:
    """The page, from what the files say."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `benchmarks/report.py` from `benchmarks/results/*.json`; `make bench-gpu` and `make bench` measure.",
        "Lower or higher is better as the unit suggests; a dash was not measured. What is worse is here too.",
        "",
        "![Error of the share by percent, workload and system](images/compute.svg)",
        "",
    ]
    for path in sorted(RESULTS.glob("*.json"), reverse=True):
        rows = json.loads(path.read_text())
        lines += [f"## {rows[0]['device']}, driver {rows[0]['driver']}, {max(row['date'] for row in rows)}", ""]
        for prefix, title in SECTIONS.items():
            chosen = [row for row in rows if row["id"].startswith(prefix)]
            if chosen:
                note = [NOTES[prefix], ""] if prefix in NOTES else []
                lines += [f"### {title}", "", *note, *_table(chosen), ""]
    return "\n".join(lines)


def plot() -> None:
    """The compute errors, ours beside the peers'."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "vgpu"  # the same picture from the same numbers
    from matplotlib import pyplot

    rows = [row for row in json.loads((RESULTS / "h100.json").read_text()) if row["id"].count(".") > 2]
    rows = [row for row in rows if row["id"].startswith("compute.")]
    names = [row["id"].removeprefix("compute.").removesuffix(".error_points").replace(".", " % ", 1) for row in rows]
    figure, axes = pyplot.subplots(figsize=(10, 4))
    for offset, (key, label) in enumerate((("value", "jupyter-vgpu"), ("mps", "MPS"), ("hami_core", "HAMi-core"))):
        places = [i + (offset - 1) * 0.28 for i, row in enumerate(rows) if row[key] is not None]
        axes.bar(places, [max(row[key], 0.01) for row in rows if row[key] is not None], width=0.26, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("error of the share, points")
    axes.set_xticks(range(len(names)), names, rotation=75, fontsize=7)
    axes.legend()
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    PAGE.write_text(page())
    if "--plots" in sys.argv:
        plot()


if __name__ == "__main__":
    main()
