"""Triton's own statistics of the ensemble and of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

__all__ = ["Counters", "StatisticsError", "StatisticsReader", "gained"]

_TIMES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class StatisticsError(Exception):
    """Triton's statistics cannot be read."""


@dataclass(frozen=True)
class Counters:
    """What Triton has counted of a model, all versions and servers together.

    Attributes:
        images: Images inferred on.
        executions: Executions of the model, of one batch each.
        counts: How many requests each kind of time is of.
        ns: Nanoseconds of each kind: success, fail, queue, compute_input, compute_infer and
            compute_output.
    """

    images: int
    executions: int
    counts: dict[str, int]
    ns: dict[str, int]

    def mean_ms(self, kind: str) -> float:
        """Milliseconds a successful request."""
        requests = self.counts["success"]
        return self.ns[kind] / requests / 1e6 if requests else 0.0

    def as_row(self) -> dict[str, float]:
        """The figures of the report."""
        return {
            "requests": self.counts["success"],
            "failed": self.counts["fail"],
            "images": self.images,
            "mean_batch": self.images / self.executions if self.executions else 0.0,
            "total_ms": self.mean_ms("success"),
            **{f"{kind}_ms": self.mean_ms(kind) for kind in _TIMES[2:]},
        }


class StatisticsReader:
    """Reads the statistics of a model and, of an ensemble, of its steps.

    Args:
        servers: Tritons, as grpc:// or http:// addresses; their figures are added up.
        model: The served model.

    Raises:
        StatisticsError: A server does not answer or has no such model.
    """

    def __init__(self, servers: Sequence[str], model: str) -> None:
        self._clients = {url: _client(url) for url in servers}
        self.model = model
        config = self._ask(servers[0], "get_model_config", model)
        config = config.get("config", config)
        steps = config.get("ensemble_scheduling", {}).get("step", [])
        self.models = [model, *dict.fromkeys(step["model_name"] for step in steps)]

    def read(self) -> dict[str, Counters]:
        """The counters of each model now."""
        found = {}
        for model in self.models:
            answers = [self._ask(url, "get_inference_statistics", model) for url in self._clients]
            found[model] = _sum([entry for answer in answers for entry in answer["model_stats"]])
        return found

    def close(self) -> None:
        """End the connections."""
        for client in self._clients.values():
            client.close()

    def _ask(self, url: str, method: str, model: str) -> dict[str, Any]:
        options = {"as_json": True} if url.startswith("grpc") else {}
        try:
            answer: dict[str, Any] = getattr(self._clients[url], method)(model, **options)
        except (InferenceServerException, OSError) as error:
            raise StatisticsError(f"Triton's statistics cannot be read at {url}: {error}") from None
        return answer


def _client(url: str) -> Any:
    scheme, _, authority = url.rpartition("://")
    if scheme.startswith("http"):
        return triton_http.InferenceServerClient(authority, ssl=scheme == "https")
    return triton_grpc.InferenceServerClient(authority, ssl=scheme == "grpcs")


def _sum(entries: list[dict[str, Any]]) -> Counters:
    def total(kind: str, what: str) -> int:
        stats = [entry.get("inference_stats", {}).get(kind, {}) for entry in entries]
        return sum(int(one.get(what, 0)) for one in stats)

    return Counters(
        images=sum(int(entry.get("inference_count", 0)) for entry in entries),
        executions=sum(int(entry.get("execution_count", 0)) for entry in entries),
        counts={kind: total(kind, "count") for kind in _TIMES},
        ns={kind: total(kind, "ns") for kind in _TIMES},
    )


def gained(before: dict[str, Counters], after: dict[str, Counters]) -> dict[str, Counters]:
    """What was counted between two readings."""
    return {
        model: Counters(
            now.images - before[model].images,
            now.executions - before[model].executions,
            {kind: now.counts[kind] - before[model].counts[kind] for kind in _TIMES},
            {kind: now.ns[kind] - before[model].ns[kind] for kind in _TIMES},
        )
        for model, now in after.items()
    }
