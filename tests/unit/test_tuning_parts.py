"""Tuning: what is compared how, and what is tried."""

from __future__ import annotations

import pytest

import tune
from tests.synthetic_ensemble import MACHINE, START
from tuning.bench import agree
from tuning.candidates import Machine, candidates, queue_candidates
from tuning.compare import best_load, better, noise_of
from tuning.measuring import Load, Measurement
from tuning.settings import Plan, settings_of


def test_best_load_is_the_lowest_of_the_greatest_throughput() -> None:
    def rounds(*rows: tuple[int, float, float]) -> list[dict[Load, Measurement]]:
        return [{Load("closed", n): Measurement(rate, p99, p99) for n, rate, p99 in rows}]

    found = rounds((1, 44, 20), (2, 80, 30), (4, 91.5, 50), (8, 91.9, 100))
    assert best_load(found, None) == Load("closed", 4)
    assert best_load(found, 35) == Load("closed", 2)
    assert best_load(found, 10) is None
    failing = [{Load("closed", 1): Measurement(9, 1, 1, failed=1)}]
    assert best_load(failing, None) is None


@pytest.mark.parametrize(
    ("ratios", "margin", "verdict"),
    [
        ([1.05, 1.04, 1.06, 1.05], 0.02, True),
        ([1.01, 1.01, 1.01, 1.01], 0.02, False),  # sure, and too little
        ([1.30, 1.40, 0.95, 1.30], 0.02, False),  # one round the other way
        ([1.05, 1.04, 1.06, 1.05], 0.10, False),  # the noise is more
        ([1.1] * 9 + [0.9], 0.02, True),
        ([1.0], 0.0, False),
    ],
)
def test_better_wants_more_than_the_noise(
    ratios: list[float], margin: float, verdict: bool
) -> None:
    assert better(ratios, margin) is verdict


def test_noise_grows_with_the_spread_and_shrinks_with_rounds() -> None:
    assert noise_of([1.0, 1.0, 1.0]) == 0
    assert noise_of([0.9, 1.1]) > noise_of([0.95, 1.05]) > noise_of([0.95, 1.05] * 8)
    assert noise_of([0.86, 0.86]) > 0.14  # the same in both rounds is noise too
    assert noise_of([]) == 0


def test_detections_agree_but_for_rounding() -> None:
    def found(score: float, x: float = 10.0, class_id: int = 1) -> dict[str, object]:
        return {"class_id": class_id, "score": score, "box_xyxy": [x, 0.0, 50.0, 60.0]}

    assert agree([], [], 0.3)
    assert agree([found(0.9), found(0.301)], [found(0.901, 10.4)], 0.3)
    assert not agree([found(0.9)], [], 0.3)
    assert not agree([], [found(0.9)], 0.3)
    assert not agree([found(0.9)], [found(0.9, 14.0)], 0.3)
    assert not agree([found(0.9)], [found(0.9, class_id=2)], 0.3)


def test_candidates_go_by_the_cores() -> None:
    two = Machine(cores=2, kind="cpu", backend="onnxruntime")
    assert candidates("detector.instances", two, START) == [3, 4]
    assert candidates("detector.instances", MACHINE, START) == [4, 6, 8]
    alone = Machine(cores=2, kind="cpu", backend="onnxruntime", min_instances=1)
    assert candidates("detector.instances", alone, START) == [1, 3, 4]
    assert candidates("detector.threads", two, START) == [2]  # 1 is what it has
    own = Machine(cores=2, kind="cpu", backend="onnxruntime", shares_cores=False)
    assert candidates("detector.threads", own, START) == [1, 2]


def test_candidates_of_a_gpu_batch_the_detector() -> None:
    gpu = Machine(cores=16, kind="gpu", backend="tensorrt")
    plan: Plan = {**START, "ensemble.max_batch_size": 8, "detector.batching_delay_us": 200}
    assert candidates("detector.batching_delay_us", gpu, plan) == ["off", 0, 1000, 5000]
    assert candidates("detector.instances", gpu, plan) == [3, 4]
    assert candidates("detector.threads", gpu, {**plan, "detector.threads": "auto"}) == []
    assert candidates("detector.preferred_batch_size", gpu, plan) == ["4,8", "2"]
    assert candidates("ensemble.max_batch_size", gpu, plan) == []  # the plan's profile ends there


def test_what_holds_a_queue_policy_is_not_switched_off() -> None:
    kept = Machine(
        cores=2, kind="cpu", backend="onnxruntime", kept_batching=frozenset({"preprocess"})
    )
    assert "off" not in candidates("preprocess.batching_delay_us", kept, START)
    free = Machine(cores=2, kind="cpu", backend="onnxruntime")
    assert "off" in candidates("preprocess.batching_delay_us", free, START)


def test_openvino_is_not_batched() -> None:
    machine = Machine(cores=2, kind="cpu", backend="openvino")
    queue: Plan = {**START, "detector.batching_delay_us": 0, "detector.preferred_batch_size": ""}
    for plan in (START, queue):
        assert candidates("detector.batching_delay_us", machine, plan) == []
        assert candidates("detector.preferred_batch_size", machine, plan) == []
        alone: Plan = {**plan, "preprocess.preferred_batch_size": "1"}
        assert candidates("ensemble.max_batch_size", machine, alone) == []
    assert "detector.threads" in settings_of("openvino")
    assert "detector.threads" not in settings_of("tensorrt")


def test_queues_are_limited_to_about_what_is_served_within_the_limit() -> None:
    plan: Plan = {**START, "detector.batching_delay_us": 0, "preprocess.queue_timeout_us": 500_000}
    assert queue_candidates("detector.max_queue_size", plan, 90, 400) == [9, 18, 36]
    assert queue_candidates("detector.max_queue_size", START, 90, 400) == []  # it has no queue
    waits = queue_candidates("preprocess.queue_timeout_us", plan, 90, 400)
    assert waits == [100_000, 200_000, 400_000]
    assert queue_candidates("detector.queue_timeout_us", plan, 90, 400) == []  # requests may wait
    # A first step that refuses by its queue's size can crash a Triton: only where it does so now.
    assert queue_candidates("preprocess.max_queue_size", plan, 90, 400) == []
    plan["preprocess.max_queue_size"] = 9
    assert queue_candidates("preprocess.max_queue_size", plan, 90, 400) == [18, 36]


def test_preferred_sizes_are_tried_where_requests_are_batched() -> None:
    plan: Plan = {**START, "detector.batching_delay_us": 0, "detector.preferred_batch_size": "1"}
    assert candidates("detector.preferred_batch_size", MACHINE, plan) == ["", "4"]
    assert candidates("detector.preferred_batch_size", MACHINE, START) == []
    assert candidates("preprocess.preferred_batch_size", MACHINE, START) == ["1", "8"]
    assert candidates("ensemble.max_batch_size", MACHINE, START) == [8]
    plan["preprocess.preferred_batch_size"] = "4"  # no batch is greater
    assert candidates("ensemble.max_batch_size", MACHINE, plan) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--p99-ms", "0"],
        ["--budget", "0"],
        ["--rounds", "0"],
        ["--max-concurrency", "0"],
        ["--margin", "-1"],
        ["--report-only", "--apply"],
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        tune.main(options)
    assert refused.value.code == 2
    assert options[0] in capsys.readouterr().err
