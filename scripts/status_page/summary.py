"""Two looks at every endpoint, summed up: counts since the start, rates in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from status_page.latency import Latency, of_buckets, of_summaries
from status_page.scrape import Scrape

__all__ = ["Gateway", "Gpu", "Server", "Stage", "Two", "gateway_of", "server_of", "stages_of"]

_ROUTES = ("/detect", "/batch_detect")


@dataclass(frozen=True)
class Two:
    """Two looks at one endpoint."""

    before: Scrape
    now: Scrape

    @property
    def seconds(self) -> float:
        """The time between them."""
        return self.now.moment - self.before.moment

    def gained(self, name: str, **labels: str) -> float:
        """What a counter has gained; one that has begun anew has gained what it shows."""
        before, now = self.before.total(name, **labels), self.now.total(name, **labels)
        return now - before if now >= before else now

    def rate(self, name: str, **labels: str) -> float:
        """What a counter gains in a second."""
        return self.gained(name, **labels) / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Stage:
    """A model, over all servers. Times are milliseconds, None where nothing was asked.

    Attributes:
        answered: Requests since the start.
        failed: Failures that Triton has counted since the start, those of clients included.
        rejected: Of these, requests that waited too long.
        requests_per_s: Requests answered.
        images_per_s: Images inferred.
        mean_ms: Of a request, its wait included.
        queue_ms: Of its wait.
        waiting: Requests that wait now.
        batch: Mean number of images in an execution.
        latency: Quantiles, where Triton keeps summaries.
    """

    model: str
    answered: int
    failed: int
    rejected: int
    requests_per_s: float
    images_per_s: float
    mean_ms: float | None
    queue_ms: float | None
    waiting: int
    batch: float | None
    latency: Latency | None


@dataclass(frozen=True)
class Gpu:
    """One GPU: a share, and bytes."""

    uuid: str
    utilization: float
    memory_used: float
    memory_total: float


@dataclass(frozen=True)
class Server:
    """A Triton with its launcher. What is only known of one of them is None without it.

    Attributes:
        address: Of Triton's metrics, or of the launcher where Triton is not asked.
        healthy: Whether every model answers an inference.
        failing: The models that do not.
        restarts: Of Triton.
        reloads: Of its models.
        cpu: Share of the host's cores in use.
        memory_used: Of the host, in bytes.
        memory_total: Of the host, in bytes.
        shm_used: Of /dev/shm, in bytes.
        shm_total: Of /dev/shm, in bytes.
        own_memory: Of Triton's and its models' processes, in bytes.
        gpus: Empty where there are none.
    """

    address: str
    healthy: bool | None = None
    failing: tuple[str, ...] = ()
    restarts: int | None = None
    reloads: int | None = None
    cpu: float | None = None
    memory_used: float | None = None
    memory_total: float | None = None
    shm_used: float | None = None
    shm_total: float | None = None
    own_memory: float | None = None
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Gateway:
    """A gateway; counts are since its start, of requests for detections and frames.

    Attributes:
        address: Where it is.
        ready: Whether it takes requests.
        answered: Answers with detections.
        bad: Answers 4xx.
        errors: Answers 5xx that are not refusals by the gateway.
        shed: Refusals, there being no room.
        requests_per_s: All of these.
        in_flight: Images at Triton.
        open: Requests under way.
        cache_hits: Share of the lookups; None without a cache.
        latency: Quantiles of the answers.
    """

    address: str
    ready: bool
    answered: int
    bad: int
    errors: int
    shed: int
    requests_per_s: float
    in_flight: int
    open: int
    cache_hits: float | None
    latency: Latency | None


def stages_of(tritons: Sequence[Two]) -> list[Stage]:
    """What each model does, over all servers."""
    models: set[str] = set()
    for two in tritons:
        models |= two.now.by("model", "nv_inference_request_success").keys()
    return [_stage(model, tritons) for model in sorted(models)]


def _stage(model: str, tritons: Sequence[Two]) -> Stage:
    def total(name: str, **labels: str) -> int:
        return int(sum(two.now.total(name, model=model, **labels) for two in tritons))

    def gained(name: str) -> float:
        return sum(two.gained(name, model=model) for two in tritons)

    def rate(name: str) -> float:
        return sum(two.rate(name, model=model) for two in tritons)

    def per(name: str, of: str, scale: float) -> float | None:
        count = gained(of)
        return gained(name) / count / scale if count else None

    requests = "nv_inference_request_success"
    failures = "nv_inference_request_failure"
    cancelled = total(failures, reason="CANCELED")
    summaries = [
        two.now.by("quantile", "nv_inference_request_summary_us", model=model) for two in tritons
    ]
    return Stage(
        model=model,
        answered=total(requests),
        failed=total(failures) - cancelled,
        rejected=total(failures, reason="REJECTED"),
        requests_per_s=rate(requests),
        images_per_s=rate("nv_inference_count"),
        mean_ms=per("nv_inference_request_duration_us", requests, 1000),
        queue_ms=per("nv_inference_queue_duration_us", requests, 1000),
        waiting=total("nv_inference_pending_request_count"),
        batch=per("nv_inference_count", "nv_inference_exec_count", 1),
        latency=of_summaries(summaries),
    )


def server_of(address: str, triton: Scrape | None, launcher: Scrape | None) -> Server:
    """How a server and its host are."""
    known: dict[str, float] = {}
    if triton is not None:
        known["cpu"] = triton.total("nv_cpu_utilization")
        known["memory_used"] = triton.total("nv_cpu_memory_used_bytes")
        known["memory_total"] = triton.total("nv_cpu_memory_total_bytes")
    if launcher is not None:
        known["shm_used"] = launcher.total("launcher_shm_used_bytes")
        known["shm_total"] = launcher.total("launcher_shm_size_bytes")
        known["own_memory"] = launcher.total("launcher_process_anonymous_bytes")
    health = {} if launcher is None else launcher.by("model", "launcher_model_healthy")
    return Server(
        address,
        healthy=None if launcher is None else launcher.total("launcher_healthy") == 1,
        failing=tuple(sorted(model for model, ok in health.items() if not ok)),
        restarts=None if launcher is None else int(launcher.total("launcher_triton_restarts")),
        reloads=None if launcher is None else int(launcher.total("launcher_model_reloads")),
        gpus=() if triton is None else _gpus(triton),
        **known,
    )


def _gpus(triton: Scrape) -> tuple[Gpu, ...]:
    used = triton.by("gpu_uuid", "nv_gpu_memory_used_bytes")
    total = triton.by("gpu_uuid", "nv_gpu_memory_total_bytes")
    busy = triton.by("gpu_uuid", "nv_gpu_utilization")
    return tuple(
        Gpu(uuid, busy.get(uuid, 0.0), used.get(uuid, 0.0), total[uuid]) for uuid in sorted(total)
    )


def gateway_of(address: str, two: Two, *, ready: bool) -> Gateway:
    """How a gateway is."""

    def statuses(scrape: Scrape) -> dict[str, float]:
        counts = scrape.by("status", "gateway_frames")
        for route in _ROUTES:
            for status, count in scrape.by("status", "gateway_requests", route=route).items():
                counts[status] = counts.get(status, 0.0) + count
        return counts

    counts = statuses(two.now)

    def of_class(first: str) -> int:
        return int(sum(count for status, count in counts.items() if status.startswith(first)))

    gained = sum(counts.values()) - sum(statuses(two.before).values())
    shed = int(two.now.total("gateway_shed"))
    hits, misses = two.now.total("gateway_cache_hits"), two.now.total("gateway_cache_misses")
    return Gateway(
        address,
        ready=ready,
        answered=of_class("2"),
        bad=of_class("4"),
        errors=max(0, of_class("5") - shed),
        shed=shed,
        requests_per_s=max(0.0, gained / two.seconds) if two.seconds > 0 else 0.0,
        in_flight=int(two.now.total("gateway_in_flight")),
        open=int(two.now.total("gateway_requests_open")),
        cache_hits=hits / (hits + misses) if hits + misses else None,
        latency=_gateway_latency(two),
    )


def _gateway_latency(two: Two) -> Latency | None:
    """Over the time between the two looks; since the start where nothing was answered in it."""

    def buckets(scrape: Scrape) -> dict[float, float]:
        counts: dict[float, float] = {}
        for route in _ROUTES:
            found = scrape.by("le", "gateway_request_seconds_bucket", route=route, status="2xx")
            for bound, count in found.items():
                counts[float(bound)] = counts.get(float(bound), 0.0) + count
        return counts

    before, now = buckets(two.before), buckets(two.now)
    new = {bound: count - before.get(bound, 0.0) for bound, count in now.items()}
    if new.get(math.inf, 0.0) > 0:
        return of_buckets(new, f"histogram, last {two.seconds:.0f} s")
    return of_buckets(now, "histogram, since the start")
