"""The comparison with other ways to serve: what is made of its measurements, and its options."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flask")
pytest.importorskip("litserve")

import compare
from detserve.detections import Detections
from peers.sides import difference
from peers.summary import claims, summarise


@pytest.mark.parametrize(
    ("box", "score", "class_id", "said"),
    [
        ([10, 20, 30, 40], 0.9, 1, None),
        ([10.4, 20, 30, 40], 0.9005, 1, None),
        ([10.6, 20, 30, 40], 0.9, 1, "differs by 0.6 px"),
        ([10, 20, 30, 40], 0.902, 1, "0.002 of the score"),
        ([10, 20, 30, 40], 0.9, 0, "a cat where the ensemble finds a dog"),
    ],
)
def test_other_answers_are_told_apart(
    box: list[float], score: float, class_id: int, said: str | None
) -> None:
    ours = Detections(
        np.array([[10, 20, 30, 40]], np.float32),
        np.array([0.9], np.float32),
        np.array([1], np.int32),
        ("cat", "dog"),
    )
    label = ours.labels[class_id]
    theirs = {"box": box, "score": score, "class_id": class_id, "label": label}
    found = difference(ours, [theirs])
    assert found is None if said is None else said in str(found)
    assert difference(ours, []) == "0 objects, the ensemble 1"


def row(images_per_s: float, **errors: int) -> dict[str, object]:
    return {"images_per_s": images_per_s, "p99_ms": 10.0, "errors": errors}


def test_ratios_are_taken_within_the_rounds_of_a_machine_that_drifts() -> None:
    rounds = [
        {
            "limit": {"images_per_s": 100.0 * speed},
            "sides": {
                "ensemble": {4: row(90.0 * speed), 8: row(60.0 * speed, HTTP=1)},
                "Flask": {4: row(30.0 * speed), 8: row(30.0 * speed)},
                "LitServe": {4: row(80.0 * speed), 8: row(60.0 * speed)},
            },
        }
        for speed in (1.0, 0.1, 0.5)
    ]
    others = {"limit": "limit", "flask": "Flask", "litserve": "LitServe"}
    summary = summarise(rounds, [4, 8], others)
    assert summary["ensemble"][4]["images_per_s"] == 45
    assert summary["ensemble"][4]["ratios"] == pytest.approx(
        {"limit": 0.9, "flask": 3.0, "litserve": 9 / 8}
    )
    assert summary["ensemble"][8]["errors"] == {"HTTP": 3}

    flask, litserve = claims({"ensemble": {4: summary["ensemble"][4]}}, ["ensemble"])
    assert flask.held
    assert litserve.held
    flask, litserve = claims(summary, ["ensemble"])
    assert not flask.held  # 2 at 8
    assert not litserve.held  # as fast is not ahead
    assert "did not hold (3.00 at 4, 2.00 at 8)" in str(flask)


def test_nothing_is_claimed_of_low_concurrencies_or_of_peers_that_were_left_out() -> None:
    ratios = {"limit": 0.9, "flask": 9.0}
    assert claims({"ensemble": {2: {"ratios": ratios}}}, ["ensemble"]) == []
    (claim,) = claims({"ensemble": {4: {"ratios": ratios}}}, ["ensemble"])
    assert claim.held
    assert "Flask" in claim.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seconds", "0"], "--seconds must be over 0"),
        (["--rounds", "0"], "a number of 1 or more is wanted, not '0'"),
        (["--peers", "torchserve"], "invalid choice: 'torchserve'"),
    ],
)
def test_wrong_options_are_named(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare.main(options)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "openvino" else found(name),
    )
    with pytest.raises(SystemExit) as stopped:
        compare.main([])
    assert stopped.value.code == 2
    assert "not installed: openvino; pip install" in capsys.readouterr().err
    assert compare.main(["--no-openvino", "--images", str(tmp_path)]) == 1  # it is not needed then


def test_a_folder_without_photos_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--images", str(tmp_path)]) == 1
    assert f"error: there are no .jpg files in {tmp_path}" in capsys.readouterr().err
