"""Prometheus metrics of the service, made of one state."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .manager import State


class _StateCollector(Collector):
    def __init__(self, state: State, since: Sequence[float] | None) -> None:
        self._state, self._since = state, since

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
            if not self._state.is_blind:
                slices.add_metric([person.name], len(person.tenants))
            hours.add_metric([person.name, "held"], person.spent.held)
            hours.add_metric([person.name, "used"], person.spent.used)
            if person.entitlement and person.entitlement.hours is not None:
                allowed.add_metric([person.name], person.entitlement.hours)
        wrong = GaugeMetricFamily(
            "jupyter_vgpu_wrong_group_rules", "Things that groups' properties say and that are none"
        )
        if not self._state.is_partial:
            wrong.add_metric([], len(self._state.wrong))
        troubles = GaugeMetricFamily("jupyter_vgpu_troubles", "Parts that the service can't reach or read now")
        troubles.add_metric([], len(self._state.troubles) + len(self._state.away))
        yield from (slices, hours, allowed, troubles, wrong)
        if self._since is not None:
            waiting = GaugeMetricFamily("jupyter_vgpu_queue_servers", "Servers that wait for a GPU")
            waiting.add_metric([], len(self._since))
            longest = GaugeMetricFamily("jupyter_vgpu_queue_longest_seconds", "The longest that one of them has waited")
            longest.add_metric([], max((time.time() - since for since in self._since), default=0))
            yield from (waiting, longest)


def exposition(state: State, since: Sequence[float] | None) -> bytes:
    """As Prometheus reads it.

    since: of those who wait, in seconds since 1970; None: there is no queue, or it is not known now.
    """
    registry = CollectorRegistry()
    registry.register(_StateCollector(state, since))
    return generate_latest(registry)
