"""The service that builds plans: what can be read of it without Docker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import build_plan
from plan import PlanError, PlanOptions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    plan: dict[str, Any] = compose["services"]["plan"]
    return plan


def default_of(variable: str) -> str:
    """The value of a compose file's `${NAME:-default}`."""
    found = re.fullmatch(r"\$\{\w+:-(.*)\}", variable)
    assert found is not None, variable
    return found[1]


def test_the_image_is_pinned_once(service: dict[str, Any]) -> None:
    dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
    defaults = dict(re.findall(r"^ARG (\w+)=(.*)$", dockerfile, re.MULTILINE))
    arguments = {name: default_of(value) for name, value in service["build"]["args"].items()}
    assert defaults == arguments
    assert re.fullmatch(r"\d\d\.\d\d-py3", arguments["NVIDIA_TAG"])
    assert "FROM nvcr.io/nvidia/tensorrt:${NVIDIA_TAG}\n" in dockerfile


def test_a_gpu_is_reserved(service: dict[str, Any]) -> None:
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_what_is_mounted_exists_or_is_made(service: dict[str, Any]) -> None:
    for volume in service["volumes"]:
        source, target = volume.split(":")[:2]
        name = source.removeprefix("./")
        assert target == f"/detserve/{name}"
        assert name == "build" or (ROOT / name).is_dir()


def test_the_packages_installed_are_those_that_the_lock_pins(service: dict[str, Any]) -> None:
    dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
    install = re.search(r'"\$\{CUDA_BINDINGS\}" (.*?)\s*&&', dockerfile.replace("\\\n", " "))
    assert install is not None
    locked = set(
        re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    assert {re.sub(r"\[.*\]|'", "", name) for name in install[1].split()} <= locked


def test_the_default_command_is_one_that_the_script_takes(
    service: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, Path, PlanOptions]] = []

    def build(model: Path, output: Path, options: PlanOptions, **_: object) -> None:
        asked.append((model, output, options))
        raise PlanError("enough")

    monkeypatch.setattr(build_plan, "build_plan", build)
    assert build_plan.main(service["command"]) == 1
    ((model, output, options),) = asked
    assert model == Path("model_repository/detector/1/model.onnx")
    assert output == Path("build/plans/model.plan")
    assert options.timing_cache == Path("build/plans/timings")


def test_a_release_that_is_there_needs_no_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps before leave nothing to build from then, and the one after it does nothing."""
    assert build_plan.main([str(tmp_path / "gone.onnx"), f"--unless={tmp_path}"]) == 0
    assert "is there already: no plan is built" in capsys.readouterr().out
    assert build_plan.main([str(tmp_path / "gone.onnx"), f"--unless={tmp_path / 'r2'}"]) == 1
