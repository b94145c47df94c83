"""Faults under load, run as a user runs them; those that take little time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from robustness.cases import CASES
from robustness.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
LOAD = "0.15"  # other tests may run on this machine: no request is to be refused for their sake


def chaos(*arguments: str, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/chaos.py"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def results(output: Path, *names: str) -> list[dict[str, Any]]:
    ran = chaos("--only", *names, "--load", LOAD, "--output", str(output))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((output / "chaos.json").read_text())
    assert report["passed"]
    assert [case["case"] for case in report["cases"]] == list(names)
    for case in report["cases"]:
        assert case["recovered"]
        assert case["requests"] > 0
        assert case["other"] == case["retrying"] == 0
        assert case["left"] == []
        assert case["what"] in " ".join(ran.stdout.split()) or "│" in ran.stdout
    for log in (output / "logs").glob("*/launcher.log"):
        assert "Ready" in log.read_text()
    return list(report["cases"])


def test_the_cases_are_listed() -> None:
    ran = chaos("--list")
    assert ran.returncode == 0
    assert [line.split()[0] for line in ran.stdout.splitlines()] == [case.name for case in CASES]
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.setting for case in CASES} <= SETTINGS.keys()


def test_an_unknown_case_is_refused() -> None:
    ran = chaos("--only", "no-such-case")
    assert ran.returncode == 2
    assert "no-such-case" in ran.stderr


@pytest.mark.usefixtures("repository")
def test_a_repository_without_models(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    only = ("--only", "kill-triton", "--output", str(tmp_path / "out"))
    ran = chaos(*only, "--model-repository", str(tmp_path / "models"))
    assert ran.returncode == 1
    assert "error: the launcher does not start" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.usefixtures("repository")
def test_killed_processes(tmp_path: Path) -> None:
    models, launcher = results(tmp_path, "kill-models", "kill-launcher")
    assert models["healthy_s"] is not None
    assert launcher["healthy_s"] is not None
    assert launcher["in_flight"] + launcher["refused"] > 0


@pytest.mark.usefixtures("repository")
def test_a_spoiled_model_file(tmp_path: Path) -> None:
    """The other process serves on, the health says what is wrong, and it heals by itself."""
    (case,) = results(tmp_path, "corrupt-model")
    assert len(case["checks"]) == 6
    assert case["healthy_s"] > 10
    log = (tmp_path / "logs/plain/launcher.log").read_text()
    assert "it serves with the processes it has left" in log
    assert "starting it again" not in log


@pytest.mark.usefixtures("repository")
def test_a_full_disk_under_the_log(tmp_path: Path) -> None:
    if lack := SETTINGS["small-log-disk"].lacks():
        pytest.skip(lack)
    (case,) = results(tmp_path, "full-log-disk")
    assert len(case["checks"]) == 5
