"""`make loadtest` as it is run: Locust against a real Triton, and its report."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from local_server import TritonServer
from tests.server.conftest import on_any_ports
from tests.server.gateways import gateway

ROOT = Path(__file__).resolve().parents[2]


def run(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "clients")]
    return subprocess.run(
        [sys.executable, "-m", "loadtest", "--output", str(output), *options],
        cwd=output.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def report_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def unwatched(repository: Path) -> Any:
    """A server that nobody but the load test asks."""
    with on_any_ports(repository, supervise=False) as running:
        yield running


def servers(running: TritonServer) -> list[str]:
    return ["--server", running.grpc_url, running.http_url]


def test_counts_equal_tritons_and_the_report_is_complete(
    unwatched: TritonServer, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    # The latency's agreement is for `make loadtest` to judge: here other tests may take the cores.
    options = ["--duration", "3", "--settle", "0.5", "--levels", "1,3", "--tolerance", "0"]
    done = run(output, *servers(unwatched), "--tags", "grpc", "http", *options)
    assert done.returncode == 0, done.stderr
    report = report_of(output)
    counted = {check["name"]: check for check in report["agreement"]}
    assert counted["answered requests"]["ours"] == counted["answered requests"]["tritons"] > 0
    assert counted["images with detections"]["difference"] == 0
    assert {row["protocol"] for row in report["requests"]} == {"grpc", "http"}
    models = [row["model"] for row in report["triton"] if row["phase"] == "whole run"]
    assert models == ["detection", "preprocess", "detector", "postprocess"]
    assert report["knee"] in ("1 user", "3 users")
    with (output / "steps.csv").open() as file:
        assert [row["level"] for row in csv.DictReader(file)] == ["1", "3"]
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not any(part in page for part in ('src="http', "<link", "<script"))


def test_open_arrival_through_two_processes(unwatched: TritonServer, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run(
        output,
        *servers(unwatched),
        *("--scenario", "steady", "--arrival", "open", "--rate", "6", "--duration", "6"),
        *("--settle", "1", "--tolerance", "0", "--processes", "2"),
    )
    assert done.returncode == 0, done.stderr
    (check, *_) = report_of(output)["agreement"]
    assert check["ours"] == check["tritons"] > 6


def test_an_slo_that_is_missed_fails_the_run(unwatched: TritonServer, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run(
        output,
        *servers(unwatched),
        *("--scenario", "mixed", "--concurrency", "1", "--duration", "3", "--settle", "0.5"),
        *("--p99-ms", "0.5", "--tolerance", "0"),
    )
    assert done.returncode == 1, done.stderr
    assert "SLO missed: mixed: p99" in done.stderr
    names = {row["request"] for row in report_of(output)["requests"]}
    assert names == {f"detect {side}px" for side in (320, 640, 1280, 1920)}


def test_rest_users_ask_the_gateway(unwatched: TritonServer, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with gateway(unwatched.grpc_url, "--max-wait", "30") as running:
        done = run(
            output,
            *servers(unwatched),
            *("--tags", "rest", "--gateway", running.url, "--scenario", "steady"),
            *("--concurrency", "2", "--duration", "6", "--settle", "0.5", "--tolerance", "0"),
        )
    assert done.returncode == 0, done.stderr
    report = report_of(output)
    (check,) = report["agreement"]
    assert check["ours"] == check["tritons"] > 0
    assert {row["request"] for row in report["requests"]} == {"/detect", "/batch_detect"}


def test_figures_that_differ_from_tritons_fail_the_run(
    unwatched: TritonServer, tmp_path: Path
) -> None:
    """Somebody else asks the same server meanwhile: the report must not hide it."""
    from detection_client import DetectionClient
    from photos import jpeg

    output = tmp_path / "out"
    paths = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "clients")]
    command = [sys.executable, "-m", "loadtest", "--output", str(output), *servers(unwatched)]
    command += ["--scenario", "steady", "--concurrency", "1", "--duration", "5", "--settle", "0.5"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with DetectionClient(unwatched.grpc_url, timeout=30) as client:
        while process.poll() is None:
            client.detect(jpeg("coffee"))
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read()
    assert process.returncode == 3, errors
    assert "images with detections: " in errors
    assert "DIFFERS from Triton's" in errors


def test_no_server_is_a_sentence(tmp_path: Path) -> None:
    done = run(tmp_path / "out", "--server", "ftp://nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --server ftp://nowhere: an address is")
