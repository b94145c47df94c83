"""Tuning: the search on a synthetic ensemble, its log and its report; what is tried."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from tuning.bench import agree
from tuning.candidates import Machine, candidates, queue_candidates
from tuning.compare import Options, best_load, better, noise_of
from tuning.journal import Journal, JournalError, read_log
from tuning.measuring import Load, LoggedBench, Measurement, TrialError
from tuning.report import print_report, write_report
from tuning.result import Result
from tuning.search import Limits, Search
from tuning.settings import Plan, settings_of, show

MACHINE = Machine(cores=4, kind="cpu", backend="onnxruntime")
START: Plan = {
    "detector.instances": 2,
    "detector.threads": "auto",
    "detector.batching_delay_us": "off",
    "preprocess.batching_delay_us": 0,
    "postprocess.batching_delay_us": "off",
    "detector.preferred_batch_size": "",
    "preprocess.preferred_batch_size": "",
    "postprocess.preferred_batch_size": "",
    "preprocess.instances": 2,
    "postprocess.instances": 2,
    "ensemble.max_batch_size": 16,
    "preprocess.max_queue_size": 0,
    "detector.max_queue_size": 0,
    "postprocess.max_queue_size": 0,
    "preprocess.queue_timeout_us": 0,
    "detector.queue_timeout_us": 0,
    "postprocess.queue_timeout_us": 0,
}


class Synthetic:
    """An ensemble that exists as formulas: a bench whose optimum is known.

    Four cores, a detector of 10 ms of one core, which several threads make shorter at a cost, and
    preprocessing that waits for nothing. Speeds are noisy, and the machine drifts.
    """

    def __init__(self, noise: float = 0.01, drift: float = 0.2, seed: int = 3) -> None:
        self._random = random.Random(seed)
        self._noise = noise
        self._drift = drift
        self._now = 0.0
        self.measured = 0
        self.refuses: dict[str, int | str] = {}

    def capacity(self, plan: Plan) -> float:
        """Images a second, at the most."""
        instances = int(plan["detector.instances"])
        threads = max(1, 4 // instances)
        if plan["detector.threads"] != "auto":
            threads = int(plan["detector.threads"])
        used = min(4.0, instances * threads)
        crowded = 0.9 ** max(0, instances * threads - 4)  # more threads than cores get in each
        efficiency = 1 / (1 + 0.15 * (threads - 1))  # other's way, and threads wait for each other
        wait = 1.0 if plan["preprocess.batching_delay_us"] in (0, "off") else 0.9
        return 100 * used * efficiency * crowded * wait

    def measure(self, plan: Plan, copy: int, load: Load, seconds: float) -> Measurement:
        assert copy in (0, 1)
        if any(plan[name] == value for name, value in self.refuses.items()):
            raise TrialError("it does not load: too much")
        self._now += seconds
        self.measured += 1
        drift = 1 + self._drift * math.sin(self._now / 40)
        speed = self.capacity(plan) * drift * self._random.gauss(1, self._noise)
        if load.kind == "open":
            limit = int(plan["preprocess.max_queue_size"])
            wait_ms = 1e3 * limit / speed if limit else 1e3 * seconds
            good = speed if wait_ms <= 90 else 0.2 * speed
            return Measurement(speed, wait_ms / 2, wait_ms, goodput_per_s=good)
        # At the least four under way keep four cores busy.
        rate = speed * min(1.0, load.value / 4)
        latency = 1e3 * load.value / rate
        return Measurement(rate, latency, 1.2 * latency, goodput_per_s=rate)

    def fresh(self) -> None:
        pass

    def clock(self) -> float:
        return self._now


def search(
    bench: Synthetic,
    log: Path,
    start: Plan = START,
    machine: Machine = MACHINE,
    *,
    p99_ms: float | None = None,
    budget_s: float = 3000,
    only: tuple[str, ...] = (),
) -> Search:
    """A search that has run."""
    with Journal(log) as journal:
        logged = LoggedBench(bench, journal)
        options = Options(p99_ms=p99_ms, seconds=1, rounds=4)
        limits = Limits(budget_s=budget_s, only=only, final_rounds=4)
        found = Search(logged, machine, start, options, limits)
        header = {
            "cores": 4, "processor": "formula", "backend": "onnxruntime", "kind": "cpu",
            "photos": 1, "options": vars(options),
        }  # fmt: skip
        journal.record("header", {}, lambda: header)
        found.run()
    return found


def steps_of(found: Search) -> dict[tuple[str, int | str], str]:
    return {(step["setting"], step["to"]): step["decision"] for step in found.steps}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_optimum_is_found_though_the_machine_drifts(tmp_path: Path, seed: int) -> None:
    bench = Synthetic(seed=seed)
    found = search(bench, tmp_path / "log")
    assert found.plan["detector.instances"] == 4
    assert found.plan["detector.threads"] == "auto"  # one
    assert bench.capacity(found.plan) == 400
    result = Result.of(read_log(tmp_path / "log")[0])
    assert set(result.changes) == {"detector.instances"}
    assert result.final["ratio"] == pytest.approx(400 / bench.capacity(START), rel=0.05)


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_noise_alone_changes_nothing(tmp_path: Path, seed: int) -> None:
    class Same(Synthetic):
        def capacity(self, plan: Plan) -> float:
            return 100 * (len(plan) > 0)

    found = search(Same(noise=0.05, seed=seed), tmp_path / "log")
    assert found.plan == START
    assert len(found.steps) > 5
    assert "kept" not in steps_of(found).values()


def test_a_start_in_bad_shape_is_tuned_in_several_steps(tmp_path: Path) -> None:
    bad: Plan = {**START, "detector.instances": 2, "detector.threads": 4}
    bad["preprocess.batching_delay_us"] = 2000
    bench = Synthetic()
    found = search(bench, tmp_path / "log", bad)
    assert bench.capacity(found.plan) == 400
    assert list(steps_of(found).values()).count("kept") >= 2


def test_throughput_is_sought_within_the_limit(tmp_path: Path) -> None:
    """Latency is 1.2 times the requests under way over the rate: the limit allows few of them."""
    bench = Synthetic(drift=0.0)
    found = search(bench, tmp_path / "log", p99_ms=14)
    result = Result.of(read_log(tmp_path / "log")[0])
    assert found.plan["detector.instances"] == 4  # 1.2 * 4 / 400 is 12 ms
    assert result.keeps_slo
    assert result.final["loads"][1] == 4
    for step in result.steps:
        assert step["by"] == "open" or step["loads"][1] is None or step["loads"][1] <= 4


def test_an_slo_that_nothing_keeps_still_leads_to_shorter_latencies(tmp_path: Path) -> None:
    bench = Synthetic(drift=0.0)
    found = search(bench, tmp_path / "log", p99_ms=2)
    result = Result.of(read_log(tmp_path / "log")[0])
    assert not result.keeps_slo
    assert bench.capacity(found.plan) > bench.capacity(START)


def test_the_queue_is_limited_to_what_is_answered_in_time(tmp_path: Path) -> None:
    start: Plan = {**START, "preprocess.max_queue_size": 500}
    bench, only = Synthetic(drift=0.0), ("preprocess.max_q",)
    found = search(bench, tmp_path / "log", start, p99_ms=90, only=only)
    size = int(found.plan["preprocess.max_queue_size"])
    assert 0 < 1e3 * size / Synthetic().capacity(START) <= 90
    assert all(step["by"] == "open" for step in found.steps)


def test_a_value_that_does_not_load_is_reported_and_skipped(tmp_path: Path) -> None:
    bench = Synthetic()
    bench.refuses = {"detector.instances": 6}
    found = search(bench, tmp_path / "log")
    assert steps_of(found)["detector.instances", 6] == "failed"
    (failed,) = [step for step in found.steps if step["decision"] == "failed"]
    assert failed["reason"] == "it does not load: too much"
    assert found.plan["detector.instances"] == 4
    report = write_report(Result.of(read_log(tmp_path / "log")[0]), tmp_path)[0].read_text()
    assert "failed: it does not load: too much" in report


def test_the_budget_holds_and_leaves_room_for_the_end(tmp_path: Path) -> None:
    bench = Synthetic()
    found = search(bench, tmp_path / "log", budget_s=150)
    assert bench.clock() <= 150
    assert "final" in {record["kind"] for record in read_log(tmp_path / "log")[0]}
    assert len(found.steps) < len(search(Synthetic(), tmp_path / "other").steps)


@pytest.mark.parametrize("cut", [1, 20, 75, 200])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, cut: int) -> None:
    class Interrupted(Synthetic):
        def measure(self, plan: Plan, copy: int, load: Load, seconds: float) -> Measurement:
            if self.measured == cut:
                raise KeyboardInterrupt
            return super().measure(plan, copy, load, seconds)

    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        search(Interrupted(), log)
    before = log.read_bytes()
    with log.open("ab") as file:
        file.write(b'{"kind": "measure", "ke')  # and the machine lost power
    rest = Synthetic()
    found = search(rest, log)
    assert log.read_bytes().startswith(before)
    assert rest.capacity(found.plan) == 400
    measured = [record for record in read_log(log)[0] if record["kind"] == "measure"]
    assert rest.measured == len(measured) - cut


def test_a_finished_run_is_not_measured_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    plan = search(Synthetic(), log).plan
    again = Synthetic()
    assert search(again, log).plan == plan
    assert again.measured == 0


def test_a_seed_gives_the_same_run_again(tmp_path: Path) -> None:
    for name in ("one", "other"):
        search(Synthetic(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_log_of_another_run_is_refused(tmp_path: Path) -> None:
    search(Synthetic(), tmp_path / "log")
    with pytest.raises(JournalError, match=r"of another run.*--fresh"):
        search(Synthetic(), tmp_path / "log", {**START, "detector.instances": 3})


@pytest.mark.parametrize("line", ["{", "[]", '{"kind": "measure"}'])
def test_a_damaged_log_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text(f"{line}\n")
    with pytest.raises(JournalError, match="line 1 of"):
        read_log(tmp_path / "log")


def test_the_report_tells_every_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = search(Synthetic(), tmp_path / "log")
    result = Result.of(read_log(tmp_path / "log")[0])
    markdown, data, plot = write_report(result, tmp_path / "report")
    text = markdown.read_text()
    for step in found.steps:
        assert f"| {step['setting']} | {show(step['from'])} | {show(step['to'])} |" in text
    assert "Changed: detector.instances 2 -> 4" in text
    assert json.loads(data.read_text())["final"]["tuned"] == found.plan
    assert plot.read_bytes().startswith(b"\x89PNG")
    print_report(result)
    assert "detector.instances 2 -> 4" in capsys.readouterr().out.replace("\n", " ")


def test_a_run_that_is_not_over_has_a_report_too(tmp_path: Path) -> None:
    search(Synthetic(), tmp_path / "log")
    records = read_log(tmp_path / "log")[0]
    for count in (1, 5, 40, 120):
        text = write_report(Result.of(records[:count]), tmp_path)[0].read_text()
        assert "has not come to its end" in text


# --- comparing ---------------------------------------------------------------------------------


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
    assert noise_of([1.3]) == 0  # of one nothing can be told


def test_detections_agree_but_for_rounding() -> None:
    def found(score: float, x: float = 10.0, class_id: int = 1) -> dict[str, object]:
        return {"class_id": class_id, "score": score, "box_xyxy": [x, 0.0, 50.0, 60.0]}

    assert agree([], [], 0.3)
    assert agree([found(0.9), found(0.301)], [found(0.901, 10.4)], 0.3)
    assert not agree([found(0.9)], [], 0.3)
    assert not agree([], [found(0.9)], 0.3)
    assert not agree([found(0.9)], [found(0.9, 14.0)], 0.3)
    assert not agree([found(0.9)], [found(0.9, class_id=2)], 0.3)


# --- what is tried -----------------------------------------------------------------------------


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
    assert candidates("detector.batching_delay_us", machine, START) == []
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
