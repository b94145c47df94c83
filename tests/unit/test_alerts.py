"""Prometheus's configuration, and promtool's unit tests of every rule."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
TESTS = sorted((FOLDER / "tests").glob("*.yml"))


def rules(kind: str) -> list[dict[str, Any]]:
    """The rules that are alerts, or that record."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool on PATH")
    ran = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_configuration_is_valid() -> None:
    assert "2 rule files found" in promtool("check", "config", FOLDER / "prometheus.yml")


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_the_rules_are_valid(path: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", path)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_rules_do_what_they_should(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


def test_a_broken_rule_is_noticed(tmp_path: Path) -> None:
    """That the tests of the rules can fail: an alert's bound is moved."""
    shutil.copytree(FOLDER, tmp_path / "prometheus")
    path = tmp_path / "prometheus" / "rules" / "alerts.yml"
    path.write_text(path.read_text().replace("error_ratio:rate5m > 0.01", "error_ratio:rate5m > 1"))
    with pytest.raises(AssertionError, match="GatewayErrors"):
        promtool("test", "rules", tmp_path / "prometheus" / "tests" / "alerts.yml")


@pytest.mark.parametrize("alert", rules("alert"), ids=lambda alert: alert["alert"])
def test_every_alert_is_complete_and_tested_both_ways(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert re.fullmatch(r"\d+m", alert["for"])
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    document = yaml.safe_load((FOLDER / "tests" / "alerts.yml").read_text())
    checks = [
        check
        for case in document["tests"]
        for check in case["alert_rule_test"]
        if check["alertname"] == name
    ]
    assert {bool(check.get("exp_alerts")) for check in checks} == {True, False}


@pytest.mark.parametrize("name", [rule["record"] for rule in rules("record")])
def test_every_recording_rule_is_tested(name: str) -> None:
    document = yaml.safe_load((FOLDER / "tests" / "recording.yml").read_text())
    checks = [check for case in document["tests"] for check in case["promql_expr_test"]]
    assert any(name in check["expr"] and check["exp_samples"] for check in checks)
