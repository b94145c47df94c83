"""Measures plans with real servers, two of them side by side."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from benchmark import server_cpu_s, stage_times
from detection_client import AsyncDetectionClient, DetectionClient, DetectionClientError
from load import Outcome, client_ask, closed_loop, open_loop
from local_server import ServerError, TritonServer
from tuning.measuring import Load, Measurement, TrialError
from tuning.settings import Plan
from tuning.workspace import Workspace

__all__ = ["TritonBench", "agree"]

_SERVERS = 2  # at a time: the plan in place, and a candidate
_TIMEOUT_S = 60.0
_WARM_UP_S = 0.5
_REFUSALS = {"QueueFullError", "DeadlineExceededError"}  # by a full queue, or after its timeout
# What a server of other settings may answer otherwise: threads and batches add in other orders.
_SCORE_TOLERANCE, _BOX_TOLERANCE = 0.01, 1.0

Found = list[list[dict[str, Any]]]  # of each photo, `Detections.to_dicts`


class TritonBench:
    """Measures plans, each with a server of its own, which stays until others need its place.

    Args:
        workspace: The ensemble.
        photos: Encoded images to ask with.
        p99_ms: The limit of the SLO, if there is one.
        seed: For the moments of requests in the open loop.

    Attributes:
        expected: What a server has to find in the photos; None for anything.
    """

    def __init__(
        self, workspace: Workspace, photos: Sequence[bytes], p99_ms: float | None, seed: int = 1
    ) -> None:
        self._workspace = workspace
        self._photos = photos
        self._p99_ms = p99_ms
        self._seed = seed
        self._folder = tempfile.TemporaryDirectory(prefix=f"detserve-tune-{os.getpid()}-")
        self._count = 0
        self._servers: dict[str, TritonServer] = {}  # the one that was used last is the last
        self.expected: Found | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.fresh()
        self._folder.cleanup()

    def clock(self) -> float:
        """Now, in seconds."""
        return time.monotonic()

    def fresh(self) -> None:
        """End all servers."""
        while self._servers:
            self._servers.popitem()[1].stop()

    def find(self, plan: Plan) -> Found:
        """What a server of a plan finds in the photos.

        Raises:
            TrialError: It does not load, or does not answer.
        """
        return self._detect(self._server(plan, 0))

    def measure(self, plan: Plan, copy: int, load: Load, seconds: float) -> Measurement:
        """Put a server of a plan under a load; see `Bench.measure`."""
        server = self._server(plan, copy)
        try:
            outcome, details = self._run(server, load, seconds)
        except (DetectionClientError, InferenceServerException, psutil.Error) as error:
            self._drop(plan, copy)
            raise TrialError(f"the server stopped answering: {error}") from error
        summary = outcome.summary()
        if set(outcome.errors) - _REFUSALS:
            self._drop(plan, copy)  # it may be damaged
        return Measurement(
            images_per_s=summary["images_per_s"],
            p50_ms=summary["p50_ms"],
            p99_ms=summary["p99_ms"],
            failed=sum(outcome.errors.values()),
            goodput_per_s=self._goodput(outcome),
            details={"requests": summary["requests"], "errors": summary["errors"], **details},
        )

    def _goodput(self, outcome: Outcome) -> float:
        if self._p99_ms is None:
            return 0.0
        within = sum(latency * 1e3 <= self._p99_ms for latency in outcome.latencies_s)
        return within / outcome.seconds

    def _run(
        self, server: TritonServer, load: Load, seconds: float
    ) -> tuple[Outcome, dict[str, Any]]:
        models = self._workspace.models
        address = server.grpc_url.removeprefix("grpc://")
        with triton_grpc.InferenceServerClient(address) as client:
            times, cpu = stage_times(client, models), server_cpu_s(server, models)
            others, start = _busy_s() - sum(cpu.values()) - time.process_time(), self.clock()
            outcome = asyncio.run(self._ask(server, load, seconds))
            took, used = self.clock() - start, server_cpu_s(server, models)
            others = _busy_s() - sum(used.values()) - time.process_time() - others
            stages = stage_times(client, models, times)
        answered = max(1, len(outcome.latencies_s))
        details = {
            "server_cpu_ms_per_image": {
                owner: (used[owner] - cpu[owner]) / answered * 1e3 for owner in cpu
            },
            "stages": stages,
            "cores_used_by_others": max(0.0, others / took),
        }
        return outcome, details

    async def _ask(self, server: TritonServer, load: Load, seconds: float) -> Outcome:
        async with AsyncDetectionClient(
            server.grpc_url, model=self._workspace.names["ensemble"], timeout=_TIMEOUT_S, retries=0
        ) as client:
            ask = client_ask(client)
            await ask(self._photos[0])  # connects
            if load.kind == "closed":
                return await closed_loop(ask, self._photos, int(load.value), seconds)
            return await open_loop(ask, self._photos, load.value, seconds, self._seed)

    def _server(self, plan: Plan, copy: int) -> TritonServer:
        key = _key(plan, copy)
        server = self._servers.pop(key, None)
        if server is None:
            while len(self._servers) >= _SERVERS:
                self._servers.pop(next(iter(self._servers))).stop()
            server = self._start(plan)
        self._servers[key] = server
        return server

    def _start(self, plan: Plan) -> TritonServer:
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        self._workspace.build(plan, folder)
        server = TritonServer(
            folder,
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            health_port=0,
            supervise=False,  # its inferences would be part of what is measured
        )
        try:
            server.start()
            self._check(server)
            asyncio.run(self._ask(server, Load("closed", 4), _WARM_UP_S))
        except (ServerError, DetectionClientError) as error:
            server.kill()
            raise TrialError(_first_line(f"it does not load: {error}")) from error
        except BaseException:
            server.kill()
            raise
        return server

    def _check(self, server: TritonServer) -> None:
        found = self._detect(server)
        lowest = self._workspace.repository.selection_settings().score_threshold
        if self.expected is not None and not all(
            agree(*pair, lowest) for pair in zip(self.expected, found, strict=True)
        ):
            raise TrialError("it does not find the same objects in the photos")

    def _detect(self, server: TritonServer) -> Found:
        name = self._workspace.names["ensemble"]
        with DetectionClient(server.grpc_url, model=name, timeout=_TIMEOUT_S) as client:
            return [client.detect(photo).to_dicts() for photo in self._photos]

    def _drop(self, plan: Plan, copy: int) -> None:
        self._servers.pop(_key(plan, copy)).kill()


def agree(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], threshold: float
) -> bool:
    """Whether two lists of detections are the same but for rounding.

    What is just above the threshold may be in one of them alone.
    """
    return all(
        any(_same(found, candidate) for candidate in against)
        for these, against in ((one, other), (other, one))
        for found in these
        if found["score"] > threshold + _SCORE_TOLERANCE
    )


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (
        one["class_id"] == other["class_id"]
        and abs(one["score"] - other["score"]) <= _SCORE_TOLERANCE
        and all(
            abs(a - b) <= _BOX_TOLERANCE
            for a, b in zip(one["box_xyxy"], other["box_xyxy"], strict=True)
        )
    )


def _busy_s() -> float:
    """CPU seconds that all processes have used, and that other virtual machines have taken."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _first_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _key(plan: Plan, copy: int) -> str:
    return repr((sorted(plan.items()), copy))
