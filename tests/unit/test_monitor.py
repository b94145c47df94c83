"""The configuration that `scripts/monitor.py` makes, and what it says where it cannot run."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import monitor
from monitoring.config import DEPLOYED, local_config
from monitoring.programs import MonitoringError, find, running
from tests.unit.test_status import endpoints

TARGETS = {
    "triton": ["a:1", "b:1"],
    "launcher": ["a:2"],
    "gateway": [],
    "host": ["a:3"],
    "prometheus": ["a:4"],
}


def test_the_jobs_are_those_that_are_deployed_with_other_addresses() -> None:
    deployed, ours = yaml.safe_load(DEPLOYED.read_text()), yaml.safe_load(local_config(TARGETS))
    names = [job["job_name"] for job in deployed["scrape_configs"]]
    assert set(names) == TARGETS.keys()
    found = {job["job_name"]: job for job in ours["scrape_configs"]}
    assert list(found) == [name for name in names if name != "gateway"]
    for name, job in found.items():
        assert job == {"job_name": name, "static_configs": [{"targets": TARGETS[name]}]}
    assert ours["global"] == deployed["global"]


def test_the_rules_are_found_from_anywhere() -> None:
    (pattern,) = yaml.safe_load(local_config(TARGETS))["rule_files"]
    assert Path(pattern).is_absolute()
    names = {path.name for path in Path(pattern).parent.glob(Path(pattern).name)}
    assert names == {"alerts.yml", "recording.yml"}


def test_the_interval_is_also_that_of_the_rules() -> None:
    config = yaml.safe_load(local_config(TARGETS, scrape_interval="3s"))
    assert config["global"] == {"scrape_interval": "3s", "evaluation_interval": "3s"}


def test_a_job_without_an_entry_is_an_error() -> None:
    with pytest.raises(KeyError, match="host"):
        local_config({name: targets for name, targets in TARGETS.items() if name != "host"})


def test_what_is_not_there_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert monitor.main(["--show-config", "--without", "gateway", "host"]) == 0
    jobs = [job["job_name"] for job in yaml.safe_load(capsys.readouterr().out)["scrape_configs"]]
    assert jobs == ["triton", "launcher", "prometheus"]


def test_a_missing_prometheus_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("prometheus") is None
    assert monitor.main([]) == 1
    assert "there is no prometheus on PATH: apt-get install" in capsys.readouterr().err


def test_a_program_that_does_not_run_is_told_with_what_it_says() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such flag')"]
    with pytest.raises(MonitoringError, match="does not run: no such flag"):  # noqa: SIM117
        with running(command, "http://127.0.0.1:1/"):
            pytest.fail("it ran")


def test_a_server_in_its_place_is_told() -> None:
    """Debian runs a Prometheus on the same port by itself."""
    with endpoints({"/-/ready": "ready"}) as address:
        url = f"http://{address}/-/ready"
        with pytest.raises(MonitoringError, match="something answers at"):  # noqa: SIM117
            with running([sys.executable, "-c", ""], url):
                pytest.fail("it ran")


def test_a_port_that_is_taken_is_told() -> None:
    if find("prometheus") is None:
        pytest.skip("no prometheus on PATH")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = subprocess.run(
            [sys.executable, monitor.__file__, "--without", "host", "--listen", address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 1
    assert "address already in use" in ran.stderr
    assert "Traceback" not in ran.stderr
