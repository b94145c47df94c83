"""Tuning a real Triton, briefly: what comes out is served, and finds the same objects."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from detection_client import DetectionClient
from local_server import TritonServer
from photos import PHOTOS, jpeg
from tests.server.conftest import on_any_ports, wait_until_clean
from tuning.bench import TritonBench, agree
from tuning.measuring import Load, TrialError
from tuning.settings import read_plan
from tuning.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    "--seconds", "0.4", "--rounds", "1", "--final-rounds", "1", "--max-concurrency", "2",
    "--budget", "2",
)  # fmt: skip


def command(output: Path, repository: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "scripts/tune.py", "--model-repository", str(repository)),
        *("--output", str(output), *SHORT, *options),
    ]


def tune(output: Path, repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(output, repository, *options),
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def found_by(server: TritonServer) -> list[list[dict[str, Any]]]:
    with DetectionClient(server.grpc_url) as client:
        return [client.detect(jpeg(name)).to_dicts() for name in PHOTOS]


@pytest.fixture
def mine(repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository, to be written into."""
    root = tmp_path / "models"
    for name in ("detection", "preprocess", "detector", "postprocess"):
        shutil.copytree(
            repository / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


def test_what_is_tuned_is_served_and_finds_the_same(
    server: TritonServer, mine: Path, tmp_path: Path
) -> None:
    expected = found_by(server)
    output = tmp_path / "out"
    options = ("--from-defaults", "--settings", "detector.threads", "postprocess.batching")
    first = tune(output, mine, *options)
    assert first.returncode == 0, first.stderr
    assert "postprocess.batching_delay_us: off -> 0: " in first.stderr
    report = json.loads((output / "report.json").read_text())
    tried = {step["setting"] for step in report["steps"]}
    assert tried == {"detector.threads", "postprocess.batching_delay_us"}
    assert report["final"]["tuned"].keys() == report["final"]["start"].keys()
    assert (output / "report.png").stat().st_size > 10_000
    with on_any_ports(output / "model_repository") as tuned:
        for before, after in zip(expected, found_by(tuned), strict=True):
            assert agree(before, after, 0.3)

    log = (output / "measurements.jsonl").read_bytes()
    again = tune(output, mine, *options, "--apply")  # measures nothing again
    assert again.returncode == 0, again.stderr
    assert (output / "measurements.jsonl").read_bytes() == log
    for name in ("preprocess", "detector", "postprocess", "detection"):
        applied = (mine / name / "config.pbtxt").read_bytes()
        assert applied == (output / "model_repository" / name / "config.pbtxt").read_bytes()
    assert "instance_group [ { kind: KIND_CPU count: 1 } ]" in again.stdout  # the diff
    assert b"count: 2" in (output / "replaced/postprocess/config.pbtxt").read_bytes()

    other = tune(output, mine, *options, "--p99-ms", "90")
    assert other.returncode == 1
    assert "options: pass --fresh to start over" in other.stderr
    (output / "report.md").unlink()
    assert tune(output, mine, "--report-only").returncode == 0
    assert "# Tuning" in (output / "report.md").read_text()


def test_a_bench_measures_and_refuses_what_cannot_be_served(mine: Path) -> None:
    workspace = Workspace(mine)
    plan = read_plan(workspace.settings.values(), workspace.configs)
    photos = [jpeg(name) for name in PHOTOS]
    with TritonBench(workspace, photos, 1000.0) as bench:
        bench.expected = bench.find(plan)
        measured = bench.measure(plan, 0, Load("closed", 2), 0.5)
        assert measured.images_per_s > 0
        assert 0 < measured.p50_ms <= measured.p99_ms
        assert measured.failed == 0
        assert measured.details is not None
        assert measured.details["server_cpu_ms_per_image"]["detector"] > 0
        of_triton = measured.details["stages"]["detector"]["requests"]
        assert of_triton == measured.details["requests"] + 1  # and the one that connected

        crowded = {**plan, "preprocess.max_queue_size": 1}
        refused = bench.measure(crowded, 0, Load("open", 400), 1)
        assert 0 <= refused.goodput_per_s < 400

        too_much = {**plan, "preprocess.preferred_batch_size": "64"}
        with pytest.raises(TrialError, match=r"does not load.*preferred"):
            bench.measure(too_much, 0, Load("closed", 1), 0.5)
        bench.expected = [[] for _ in photos]
        with pytest.raises(TrialError, match="does not find the same objects"):
            bench.measure({**plan, "postprocess.instances": 3}, 0, Load("closed", 1), 0.5)
        bench.expected = None
        assert bench.measure(plan, 0, Load("closed", 1), 0.5).failed == 0  # it still runs
    assert not list(Path(tempfile.gettempdir()).glob(f"detserve-tune-{os.getpid()}-*"))


def test_an_interrupted_run_leaves_nothing_and_goes_on(mine: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("--settings", "postprocess.instances")
    process = subprocess.Popen(
        command(output, mine, *options), cwd=ROOT, text=True, stderr=subprocess.PIPE
    )
    log = output / "measurements.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_bytes().count(b'"measure"') >= 2):
        assert time.monotonic() < deadline, "nothing was measured"
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    wait_until_clean(process.pid)
    before = log.read_bytes()
    finished = tune(output, mine, *options)
    assert finished.returncode == 0, finished.stderr
    assert log.read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ensemble", "nothing"), "cannot read"),
        (("--images", "docs/nothing"), "no .jpg files"),
        (("--settings", "detector.instance", "nothing"), "no setting begins with 'nothing'; there"),
        (("--report-only",), "nothing has been measured yet"),
    ],
)
def test_what_cannot_be_tuned_is_said(
    mine: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = tune(tmp_path / "out", mine, *options)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
