"""Measure the ensemble against the same pipeline in process, in one run on the same photos.

The limit is the in-process pipeline with as many processes as cores, one thread each. The
ensemble is asked over gRPC by the client library, at several concurrencies. Rounds alternate
between the two, so that a machine whose speed drifts spoils no ratio. Both sides do all of the
work: images are decoded for every request, and the response cache is off.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm
from tritonclient import grpc as triton_grpc

from benchmark_report import print_report, save_plot
from detection_client import DetectionClient
from detserve.engines import load_engine
from detserve.imaging import preprocess
from detserve.nms import select_detections
from detserve.pipeline import Pipeline
from detserve.repository import DetectorRepository
from load import quantiles_ms
from local_server import TritonServer
from machine import processor_name
from photos import PHOTOS, jpeg

STAGES = ("preprocess", "detector", "postprocess")


def latency_summary(latencies_s: Sequence[float], seconds: float) -> dict[str, float]:
    """Throughput in images a second, and latency quantiles in milliseconds."""
    p50, p95, p99 = quantiles_ms(latencies_s)
    return {
        "images": len(latencies_s),
        "images_per_s": len(latencies_s) / seconds,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
    }


def _pipeline_process(
    repository: str, photos: list[bytes], seconds: float, barrier: Barrier, results: Any
) -> None:
    pipeline = Pipeline.from_repository(repository)
    for photo in photos:
        pipeline.detect(photo)
    latencies: list[float] = []
    barrier.wait()
    cpu_before, start = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        pipeline.detect(photos[len(latencies) % len(photos)])
        latencies.append(time.perf_counter() - now)
    results.put((latencies, time.perf_counter() - start, time.process_time() - cpu_before))


def measure_in_process(
    repository: Path, photos: list[bytes], processes: int, seconds: float
) -> dict[str, float]:
    """Run the in-process pipeline in several processes at once, one thread each."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(
            target=_pipeline_process, args=(str(repository), photos, seconds, barrier, results)
        )
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=seconds + 60) for _ in workers]
    for worker in workers:
        worker.join()
    latencies = [latency for answer in answers for latency in answer[0]]
    summary = latency_summary(latencies, statistics.mean(answer[1] for answer in answers))
    summary["cpu_ms_per_image"] = sum(answer[2] for answer in answers) / len(latencies) * 1e3
    return summary


def measure_stages_in_process(repository: Path, photos: list[bytes]) -> dict[str, float]:
    """CPU milliseconds an image that each stage takes in process."""
    parts = DetectorRepository(repository)
    engine = load_engine(parts.model_file(), parts.backend, parameters=parts.detector_parameters())
    settings, selection = parts.preprocess_settings(), parts.selection_settings()
    batch = np.empty((1, settings.height, settings.width, 3), np.uint8)
    spent = dict.fromkeys(STAGES, 0.0)
    rounds = 20
    for index in range(-4, rounds * len(photos)):
        t0 = time.thread_time()
        geometry = preprocess(photos[index % len(photos)], settings, batch[0])
        t1 = time.thread_time()
        candidates = engine.infer(batch)[0]
        t2 = time.thread_time()
        select_detections(candidates, geometry, selection)
        t3 = time.thread_time()
        if index >= 0:  # the first ones warm up
            for stage, seconds in zip(STAGES, (t1 - t0, t2 - t1, t3 - t2), strict=True):
                spent[stage] += seconds
    return {stage: seconds / rounds / len(photos) * 1e3 for stage, seconds in spent.items()}


def stage_models(repository: Path) -> dict[str, str]:
    """The model of each stage: a promotion gives them other names."""
    *steps, _ = DetectorRepository(repository).configs
    return dict(zip(STAGES, (config.name for config in steps), strict=True))


def server_cpu_s(server: TritonServer, models: Mapping[str, str]) -> dict[str, float]:
    """CPU seconds that the server's processes have used: Triton itself, and every stage's stubs."""
    stages = {model: stage for stage, model in models.items()}
    used = dict.fromkeys(("triton", *STAGES), 0.0)
    for pid, model in server.stub_pids().items():
        if model in stages:  # and not of another ensemble
            used[stages[model]] += _cpu_s(pid)
    used["triton"] = _cpu_s(server.pid)
    return used


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def stage_times(
    client: triton_grpc.InferenceServerClient,
    models: Mapping[str, str],
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Triton's own statistics of each stage, or what they gained since ``before``.

    Returns:
        For each stage the requests, the executions, and milliseconds a request spent in the queue
        and in computing (input, inference and output).
    """
    gained = {}
    for stage, model in models.items():
        stats = client.get_inference_statistics(model, as_json=True)["model_stats"][0]
        inference = stats.get("inference_stats", {})
        totals = {
            name: int(inference.get(name, {}).get("ns", 0))
            for name in ("queue", "compute_input", "compute_infer", "compute_output")
        }
        totals["requests"] = int(inference.get("success", {}).get("count", 0))
        totals["executions"] = int(stats.get("execution_count", 0))
        gained[stage] = totals
    if before is None:
        return gained
    times = {}
    for stage, now in gained.items():
        delta = {name: now[name] - before[stage][name] for name in now}
        requests = max(1, delta["requests"])
        times[stage] = {
            "requests": delta["requests"],
            "mean_batch": delta["requests"] / max(1, delta["executions"]),
            "queue_ms": delta["queue"] / requests / 1e6,
            "compute_ms": sum(v for k, v in delta.items() if k.startswith("compute"))
            / requests
            / 1e6,
        }
    return times


def measure_ensemble(
    server: TritonServer,
    models: Mapping[str, str],
    photos: list[bytes],
    concurrency: int,
    seconds: float,
) -> dict[str, Any]:
    """Ask the ensemble over gRPC from as many threads as ``concurrency``, each in a closed loop."""
    with (
        DetectionClient(server.grpc_url, timeout=60) as client,
        triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as statistics_of,
    ):
        for photo in photos * 2:
            client.detect(photo)
        latencies: list[list[float]] = [[] for _ in range(concurrency)]
        begin = threading.Barrier(concurrency + 1)
        deadline = [0.0]

        def ask(worker: int) -> None:
            mine = latencies[worker]
            begin.wait()
            while (now := time.perf_counter()) < deadline[0]:
                client.detect(photos[(worker + len(mine)) % len(photos)])
                mine.append(time.perf_counter() - now)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(concurrency)]
        for thread in threads:
            thread.start()
        stats_before, cpu_before = stage_times(statistics_of, models), server_cpu_s(server, models)
        client_before, start = time.process_time(), time.perf_counter()
        deadline[0] = start + seconds
        begin.wait()
        for thread in threads:
            thread.join()
        elapsed, client_cpu = time.perf_counter() - start, time.process_time() - client_before
        cpu_after = server_cpu_s(server, models)
        stages = stage_times(statistics_of, models, stats_before)
    everything = [latency for mine in latencies for latency in mine]
    per_image = 1e3 / len(everything)
    return {
        **latency_summary(everything, elapsed),
        "server_cpu_ms_per_image": {
            owner: (cpu_after[owner] - cpu_before[owner]) * per_image for owner in cpu_after
        },
        "client_cpu_ms_per_image": client_cpu * per_image,
        "stages": stages,
    }


def median_of(rounds: Sequence[Any]) -> Any:
    """The median over rounds, of every number in equal nested dictionaries."""
    if isinstance(rounds[0], dict):
        return {key: median_of([one[key] for one in rounds]) for key in rounds[0]}
    return statistics.median(rounds)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do all measurements and put the results together."""
    repository: Path = arguments.model_repository
    if arguments.images:
        photos = [path.read_bytes() for path in sorted(arguments.images.glob("*.jpg"))]
    else:
        photos = [jpeg(name) for name in PHOTOS]
    cores = len(os.sched_getaffinity(0))
    steps = arguments.rounds * (3 + len(arguments.concurrency))
    rounds, models = [], stage_models(repository)
    with (
        TritonServer(repository) as server,
        tqdm(total=steps, desc="benchmark", unit="run", file=sys.stderr, disable=None) as progress,
    ):
        for _ in range(arguments.rounds):
            one: dict[str, Any] = {"single": None, "limit": None, "ensemble": {}}
            one["in_process_cpu_ms_per_image"] = measure_stages_in_process(repository, photos)
            progress.update()
            for name, processes in (("single", 1), ("limit", cores)):
                one[name] = measure_in_process(repository, photos, processes, arguments.seconds)
                progress.update()
            for concurrency in arguments.concurrency:
                one["ensemble"][concurrency] = measured = measure_ensemble(
                    server, models, photos, concurrency, arguments.seconds
                )
                measured["ratio_to_limit"] = measured["images_per_s"] / one["limit"]["images_per_s"]
                measured["added_p50_ms"] = measured["p50_ms"] - one["single"]["p50_ms"]
                progress.update()
            rounds.append(one)
    return {
        "machine": {"cores": cores, "processor": processor_name()},
        "photos": {"count": len(photos), "mean_bytes": statistics.mean(map(len, photos))},
        "seconds": arguments.seconds,
        **median_of(rounds),
        "rounds": rounds,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--images", type=Path, help="folder of .jpg files; default: four photos")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=6, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="the medians over them are reported")
    parser.add_argument("--output", type=Path, default=Path("benchmark_output"))
    arguments = parser.parse_args()
    results = run(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "benchmark.json").write_text(json.dumps(results, indent=2) + "\n")
    save_plot(results, arguments.output / "benchmark.png")
    print_report(results)
    print(f"\nSaved {arguments.output}/benchmark.json and benchmark.png")


if __name__ == "__main__":
    main()
