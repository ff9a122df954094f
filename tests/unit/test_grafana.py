"""The dashboard and the alert rules ask for metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"
NAME = re.compile(r"\bjupyter_vgpu_\w+")


def exported() -> set[str]:
    """As the two collectors name them; a counter is asked for with _total."""
    names = set()
    for path in ("jupyter_vgpu/node/metrics.py", "spawner/jupyter_vgpu_spawner/service/metrics.py"):
        for kind, name in re.findall(r'(Gauge|Counter)MetricFamily\(\s*"(\w+)"', (ROOT / path).read_text()):
            names.add(name if kind == "Gauge" else f"{name}_total")
    return names


def test_each_panel_shows_what_is_exported() -> None:
    panels = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in NAME.findall(target["expr"])}
    assert len(asked) >= 9
    assert asked - exported() == set()


def test_each_alert_looks_at_what_is_exported() -> None:
    rules = yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in NAME.findall(rule["expr"])}
    assert len(rules) == 6
    assert asked - exported() == set()
    assert all(rule["annotations"]["summary"] for rule in rules)
