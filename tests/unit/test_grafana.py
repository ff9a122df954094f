"""The dashboard and the alert rules ask for metrics that there are, and Prometheus takes the rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import yaml
from support.node import left_out

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
    assert len(rules) == 8
    assert asked - exported() == set()
    assert all(rule["annotations"]["summary"] for rule in rules)


# each alert once as it should fire, at a time before which it should not
FIRING = (
    ("VgpuNodeDaemonAway", 'up{job="vgpud", instance="node1"}', "0x30", "5m", "1m"),
    ("VgpuGuardRestarts", 'jupyter_vgpu_guard_restarts_total{instance="node1"}', "0+1x60", "30m", "2m"),
    ("VgpuGpuFull", 'jupyter_vgpu_gpu_memory_reserved_bytes{gpu="0"}', "99x120", "70m", "30m"),
    ("VgpuRefusals", 'jupyter_vgpu_refusals_total{tenant="alice/"}', "0+120x60", "30m", "5m"),
    ("VgpuOutsideTheShim", 'jupyter_vgpu_processes_outside{tenant="alice/"}', "1x30", "10m", "3m"),
    ("VgpuServiceInTrouble", "jupyter_vgpu_troubles", "1x30", "10m", "3m"),
    ("VgpuWrongGroupRule", "jupyter_vgpu_wrong_group_rules", "1x30", "10m", "3m"),
    ("VgpuQueueLong", "jupyter_vgpu_queue_longest_seconds", "3601x30", "15m", "5m"),
)


def test_prometheus_takes_the_rules_and_each_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    promtool = shutil.which("promtool") or ROOT / ".tools" / "prometheus" / "usr" / "bin" / "promtool"
    if not Path(promtool).exists():
        left_out("promtool is not here; as root, tests/install-system-packages.sh brings it")
    names = {rule["alert"] for rule in yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"][0]["rules"]}
    assert {name for name, *_ in FIRING} == names
    cases = []
    for name, series, values, fires, before in FIRING:
        cases.append(
            {
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": values},
                    {"series": 'jupyter_vgpu_gpu_memory_bytes{gpu="0"}', "values": "100x120"},
                ],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
                        "eval_time": fires,
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    },
                    {
                        "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
                        "eval_time": before,
                        "exp_samples": [],
                    },
                ],
            }
        )
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(GRAFANA / "alerts.yml")], "tests": cases}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
