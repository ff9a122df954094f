"""Prometheus metrics of the node, computed when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .manager import Manager


class NodeCollector(Collector):
    """Reads the same state as every other view of it."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def collect(self) -> Iterable[Metric]:
        quota = GaugeMetricFamily(
            "jupyter_vgpu_memory_quota_bytes", "GPU memory that a tenant may use", labels=["tenant"]
        )
        used = GaugeMetricFamily("jupyter_vgpu_memory_used_bytes", "GPU memory that a tenant holds", labels=["tenant"])
        cores = GaugeMetricFamily(
            "jupyter_vgpu_core_quota_ratio", "Share of a GPU that a tenant may use", labels=["tenant"]
        )
        busy = GaugeMetricFamily("jupyter_vgpu_core_used_ratio", "Share of a GPU that a tenant uses", labels=["tenant"])
        refused = CounterMetricFamily("jupyter_vgpu_refusals", "Allocations refused over quota", labels=["tenant"])
        outside = GaugeMetricFamily(
            "jupyter_vgpu_processes_outside",
            "Processes that use the GPU without the shim, in its tier",
            labels=["tenant"],
        )
        for tenant in list(self._manager.tenants.values()):
            view = self._manager.describe(tenant)
            quota.add_metric([tenant.name], view["quota"]["memory"])
            used.add_metric([tenant.name], view["usage"]["memory"])
            cores.add_metric([tenant.name], view["quota"]["cores"] / 100)
            busy.add_metric([tenant.name], view["usage"]["cores"] / 100)
            refused.add_metric([tenant.name], view["refusals"]["count"])
            outside.add_metric([tenant.name], len(view["outside"]))
        total = GaugeMetricFamily("jupyter_vgpu_gpu_memory_bytes", "GPU memory that can be promised", labels=["gpu"])
        reserved = GaugeMetricFamily("jupyter_vgpu_gpu_memory_reserved_bytes", "GPU memory promised", labels=["gpu"])
        for room in self._manager.rooms():
            total.add_metric([room.uuid], room.memory_total)
            reserved.add_metric([room.uuid], room.memory_reserved)
        restarts = CounterMetricFamily("jupyter_vgpu_guard_restarts", "Times that the guard was brought up again")
        restarts.add_metric([], self._manager.guard.restarts)
        unknown = CounterMetricFamily(
            "jupyter_vgpu_unknown_symbols", "Driver functions that the shim has never heard of", labels=["symbol"]
        )
        for symbol, count in self._manager.unknown_symbols.items():
            unknown.add_metric([symbol], count)
        yield from (quota, used, cores, busy, refused, outside, total, reserved, restarts, unknown)


def registry(manager: Manager) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(NodeCollector(manager))
    return made
