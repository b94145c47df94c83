"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from gateway.cache import Cache
from gateway.capacity import Capacity

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The counters of one gateway.

    Args:
        capacity: What is under way, and what was refused.
        cache: Of results, or None.
    """

    def __init__(self, capacity: Capacity, cache: Cache | None) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gateway_requests",
            "Requests answered",
            ("route", "status"),
            registry=self._registry,
        )
        self._latency = Histogram(
            "gateway_request_seconds",
            "Time from a request's first byte to its answer's last",
            ("route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._frames = Counter(
            "gateway_frames", "Frames of /live answered", ("status",), registry=self._registry
        )
        in_flight = Gauge("gateway_in_flight", "Images at the server", registry=self._registry)
        in_flight.set_function(lambda: capacity.in_flight)
        opened = Gauge("gateway_requests_open", "Requests under way", registry=self._registry)
        opened.set_function(lambda: capacity.open)
        wait = Gauge(
            "gateway_expected_wait_seconds", "Wait before the server", registry=self._registry
        )
        wait.set_function(lambda: capacity.expected_wait)
        self._registry.register(_Counts(capacity, cache))

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(route, status).inc()
        # By class: refusals take no time, and would hide how long the answers take.
        self._latency.labels(route, f"{status // 100}xx").observe(seconds)

    def observe_frame(self, status: int) -> None:
        """Count one frame of a camera."""
        self._frames.labels(status).inc()

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)


class _Counts(Collector):
    """The counts that others keep."""

    def __init__(self, capacity: Capacity, cache: Cache | None) -> None:
        self._capacity = capacity
        self._cache = cache

    def collect(self) -> list[CounterMetricFamily]:
        """The counts now."""
        shed = CounterMetricFamily("gateway_shed", "Requests refused, there being no room")
        shed.add_metric((), self._capacity.shed)
        counts = [shed]
        for name in ("hits", "misses", "errors") if self._cache is not None else ():
            family = CounterMetricFamily(f"gateway_cache_{name}", f"Result cache: {name}")
            family.add_metric((), getattr(self._cache, name))
            counts.append(family)
        return counts
