"""Figures of the load test: the knee, the SLO, agreement with Triton, what refused means."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from typing import Any

import pytest

from detection_client import (
    DeadlineExceededError,
    QueueFullError,
    ServerUnavailableError,
)
from loadtest.analysis import (
    Window,
    agreement,
    cpu_share,
    failures,
    knee_of,
    missed_slo,
    summary,
)
from loadtest.options import LoadOptions
from loadtest.records import Recorder, Row, outcome_of
from loadtest.triton_statistics import Counters, gained


def options(**values: Any) -> LoadOptions:
    return LoadOptions.from_namespace(argparse.Namespace(**values))


def rows(*latencies: float, outcome: str = "ok", images: int = 1) -> list[Row]:
    return [(100.0, latency, "grpc", "detect", outcome, images, 0.0) for latency in latencies]


def window(rate: float, mean_ms: float, **figures: float) -> Window:
    base = {"requests": 10, "answered": 10, "refused": 0, "failed": 0, "fail_share": 0}
    measured = {"requests_per_s": rate, "mean_ms": mean_ms, "p99_ms": mean_ms, **base, **figures}
    return Window("step", 1, 0, 1, measured)


def counters(requests: int, mean_ms: float) -> Counters:
    kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    ns = {**dict.fromkeys(kinds, 0), "success": round(requests * mean_ms * 1e6)}
    return Counters(requests, requests, {**dict.fromkeys(kinds, 0), "success": requests}, ns)


def test_the_summary_counts_latencies_of_answers_alone() -> None:
    figures = summary([*rows(0.1, 0.3), *rows(9.0, outcome="refused", images=0)], 2.0)
    assert figures["mean_ms"] == pytest.approx(200)
    assert figures["max_ms"] == pytest.approx(300)
    assert figures["requests_per_s"] == 1.0
    assert (figures["refused"], figures["failed"]) == (1, 0)
    assert figures["fail_share"] == pytest.approx(1 / 3)


def test_the_summary_of_nothing_is_zeros() -> None:
    assert set(summary([], 1.0).values()) == {0}


def test_the_knee_is_the_step_of_the_highest_power() -> None:
    steps = [window(44, 22), window(80, 24), window(91, 44), window(91, 87)]
    assert knee_of(steps) == 1


def test_no_answer_no_knee() -> None:
    assert knee_of([window(0, 0)]) is None
    assert knee_of([]) is None


def test_a_missed_slo_is_named_with_how_much_it_was_over() -> None:
    (line,) = missed_slo(options(scenario="steady", p99_ms=50), [window(10, 62.5)])
    assert line == "step: p99 62.5 ms, allowed 50: 12.5 ms over"
    (line,) = missed_slo(
        options(scenario="steady", max_fail=0.05), [window(10, 9, fail_share=0.1, refused=1)]
    )
    assert line == ("step: 10.00% without detections, allowed 5.00%: 1 refused and 0 failed of 10")


def test_of_a_ramp_one_step_has_to_keep_the_slo() -> None:
    slow, quick = window(90, 80), window(40, 20)
    assert missed_slo(options(p99_ms=50), [quick, slow]) == []
    assert missed_slo(options(p99_ms=50), [slow, slow]) != []
    assert len(missed_slo(options(p99_ms=50, scenario="spike"), [quick, slow])) == 1


def test_agreement_adds_what_triton_does_not_see() -> None:
    recorder = Recorder()
    recorder.rows = rows(0.022, 0.022)
    images, requests, latency = agreement(
        recorder, counters(2, 20.0), [0.001, 0.003] * 15, through_gateway=False
    )
    assert images.difference == requests.difference == 0
    assert latency.ours == pytest.approx(22.0)
    assert latency.tritons == pytest.approx(22.0)


def test_an_open_load_is_compared_from_the_moment_of_sending() -> None:
    recorder = Recorder()
    recorder.rows = [(1.0, 0.522, "grpc", "detect", "ok", 1, 0.5)]
    *_, latency = agreement(recorder, counters(1, 20.0), [0.001, 0.003] * 15, through_gateway=False)
    assert latency.ours == pytest.approx(22.0)
    assert latency.uncertainty == pytest.approx(2 / 29**0.5 / 22.0)


def test_a_few_empty_calls_tell_nothing() -> None:
    recorder = Recorder()
    recorder.rows = rows(0.022)
    checks = agreement(recorder, counters(1, 20.0), [0.002] * 29, through_gateway=False)
    assert [check.name for check in checks] == ["images with detections", "answered requests"]


def test_what_others_ask_shows_as_a_difference() -> None:
    recorder = Recorder()
    recorder.rows = rows(0.02, 0.02, 0.02)
    images, *_ = agreement(recorder, counters(4, 20.0), [], through_gateway=False)
    assert images.difference == pytest.approx(0.25)


def test_through_the_gateway_images_alone_are_compared() -> None:
    recorder = Recorder()
    recorder.rows = rows(0.2, images=4)
    (check,) = agreement(recorder, counters(4, 20.0), [], through_gateway=True)
    assert check.difference == 0


def test_the_busiest_process_counts() -> None:
    recorder = Recorder()
    recorder.cpu = [(0, "a", 5.0), (0, "b", 1.0), (10, "a", 7.0), (10, "b", 10.0), (50, "a", 40.0)]
    assert cpu_share(recorder, 0, 10) == pytest.approx(0.9)
    assert cpu_share(recorder, 60, 70) == 0.0


def test_what_was_counted_between_two_readings() -> None:
    change = gained({"m": counters(2, 10.0)}, {"m": counters(6, 20.0)})["m"]
    assert (change.images, change.counts["success"]) == (4, 4)
    assert change.mean_ms("success") == pytest.approx((6 * 20 - 2 * 10) / 4)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (QueueFullError("busy"), "refused"),
        (DeadlineExceededError("no answer from x within 1 s"), "DeadlineExceededError"),
        (ServerUnavailableError("gone"), "ServerUnavailableError"),
    ],
)
def test_refused_is_told_from_failed(error: Exception | None, outcome: str) -> None:
    assert outcome_of(error) == outcome


def test_failures_are_counted_by_protocol_and_kind() -> None:
    found = failures([*rows(1.0), *rows(1.0, 1.0, outcome="refused", images=0)])
    assert found == [{"protocol": "grpc", "kind": "refused", "count": 2}]


def test_a_worker_s_records_are_set_to_the_master_s_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, master = Recorder(), Recorder()
    monkeypatch.setattr("loadtest.records.time.time", lambda: 500.0)
    worker.on_request("grpc", "detect", 20.0, None, {"images": 2, "late_s": 0.001})
    worker.on_request("grpc", "detect", 5.0, QueueFullError("busy"), {"images": 2})
    report = worker.take()
    assert worker.rows == []
    monkeypatch.setattr("loadtest.records.time.time", lambda: 400.0)
    master.add(report)
    assert master.rows == [
        (400.0, 0.02, "grpc", "detect", "ok", 2, 0.001),
        (400.0, 0.005, "grpc", "detect", "refused", 0, 0.0),
    ]


def test_a_worker_counts_its_own_cpu_time() -> None:
    """Locust forks its workers after the recorder was made."""
    recorder, forking = Recorder(), multiprocessing.get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)

    def work() -> None:
        recorder.sample_cpu("worker")
        sender.send(recorder.cpu)

    worker = forking.Process(target=work)
    worker.start()
    ((_, name, used),) = receiver.recv()
    worker.join()
    assert name == "worker"
    assert used < time.process_time() / 2
