"""Tuning: the search on a synthetic ensemble, its log and its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.synthetic_ensemble import MACHINE, START, Synthetic
from tuning.candidates import Machine
from tuning.compare import Options
from tuning.journal import Journal, JournalError, read_log
from tuning.measuring import Load, LoggedBench, Measurement
from tuning.report import print_report, write_report
from tuning.result import Result
from tuning.search import Limits, Search
from tuning.settings import Plan, show


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
    short, whole = (Result.of(read_log(tmp_path / name)[0]) for name in ("log", "other"))
    assert "postprocess.instances 8" in short.final["untried"]
    assert whole.final["untried"] == []
    text = write_report(short, tmp_path)[0].read_text()
    assert "The budget ended before these were tried: " in text


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


def test_two_runs_do_not_write_one_log(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "log"),
        pytest.raises(JournalError, match="another run is writing"),
        Journal(tmp_path / "log"),
    ):
        pass
    assert search(Synthetic(), tmp_path / "log").steps  # when the first has ended


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
