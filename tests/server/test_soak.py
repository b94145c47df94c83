"""The soak, run as a user runs it, for some seconds."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.server.conftest import wait_until_clean

ROOT = Path(__file__).resolve().parents[2]
# Far below the capacity, which may be less by then: other tests may run on this machine.
OPTIONS = ("--load", "0.2", "--interval", "2", "--capacity-seconds", "2")


def command(output: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "scripts/soak.py"),
        *OPTIONS,
        *options,
        "--output",
        str(output),
    ]


@pytest.mark.usefixtures("repository")
def test_a_short_soak(tmp_path: Path) -> None:
    ran = subprocess.run(
        command(tmp_path / "out", "--minutes", "0.17"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "out/soak.json").read_text())
    assert report["passed"]
    assert report["errors"] == {}
    assert report["answered"] == report["requests"] > 20
    assert report["rate_per_s"] == pytest.approx(0.2 * report["capacity_per_s"])
    assert len(report["intervals"]) == 5
    for interval in report["intervals"]:
        assert 0 < interval["p50_ms"] <= interval["p99_ms"]
        assert set(interval["protocols"]) == {"gRPC", "HTTP", "gateway"}
    processes = {row["process"] for row in report["quantities"]}
    assert {"triton", "launcher", "cleaner", "gateway", "load generator"} <= processes
    assert {"preprocess 1", "detector 1", "postprocess 1", "/dev/shm", "latency"} <= processes
    # A run this short tells nothing about growth, and must not pretend to.
    assert {row["flat"] for row in report["quantities"]} == {None}
    with (tmp_path / "out/processes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["t_s"] for row in rows}) == 6
    for row in rows:
        assert 0 < int(row["uss"]) <= int(row["rss"])
        assert int(row["threads"]) > 0
        assert int(row["files"]) > 0
    with (tmp_path / "out/system.csv").open() as file:
        counts = [int(row["triton_success"]) for row in csv.DictReader(file)]
    assert counts[-1] - counts[0] >= report["answered"]
    with Image.open(tmp_path / "out/soak.png") as image:
        assert image.size > (800, 500)


@pytest.mark.usefixtures("repository")
def test_ctrl_c_ends_it_with_a_report(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path / "out", "--minutes", "10"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        time.sleep(18)  # it starts within some, and has intervals of 2
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "Traceback" not in output
    assert "ended before its time" in output
    assert re.search(r"(\d+) of \1 answered", " ".join(output.split())), output
    report = json.loads((tmp_path / "out/soak.json").read_text())
    assert not report["passed"]
    assert 1 <= len(report["intervals"]) < 20
    for launcher in (
        int(row["pid"]) for row in pids(tmp_path / "out") if row["process"] == "launcher"
    ):
        wait_until_clean(launcher)


def pids(folder: Path) -> list[dict[str, str]]:
    with (folder / "processes.csv").open() as file:
        return list(csv.DictReader(file))
