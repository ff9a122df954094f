"""Prometheus metrics of the service, made of one state. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .manager import State


class _StateCollector(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        hours = GaugeMetricFamily(
            "jupyter_vgpu_user_gpu_hours",
            "GPU-hours of a user in the window, of slices held and of time on the GPU",
            labels=["user", "measure"],
        )
        allowed = GaugeMetricFamily(
            "jupyter_vgpu_user_gpu_hours_allowed", "GPU-hours that a user may have in the window", labels=["user"]
        )
        slices = GaugeMetricFamily("jupyter_vgpu_user_slices", "Slices that a user's servers hold", labels=["user"])
        for person in () if self._state.is_partial else self._state.people:  # a gap is true, a zero is not
            slices.add_metric([person.name], len(person.tenants))
            hours.add_metric([person.name, "held"], person.spent.held)
            hours.add_metric([person.name, "used"], person.spent.used)
            if person.entitlement and person.entitlement.hours is not None:
                allowed.add_metric([person.name], person.entitlement.hours)
        troubles = GaugeMetricFamily("jupyter_vgpu_troubles", "Parts that the service can't reach or read now")
        troubles.add_metric([], len(self._state.troubles))
        yield from (slices, hours, allowed, troubles)


def exposition(state: State) -> bytes:
    """As Prometheus reads it."""
    registry = CollectorRegistry()
    registry.register(_StateCollector(state))
    return generate_latest(registry)
