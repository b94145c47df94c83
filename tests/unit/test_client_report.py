"""Results as JSON and as a table."""

from __future__ import annotations

import json

import numpy as np
from rich.console import Console

from detection_client import Detections, ImageReport, InvalidInputError, render_table

CAT = Detections(
    np.array([[1, 2, 300.126, 400]], np.float32),
    np.array([0.87654321], np.float32),
    np.array([0], np.int32),
    ("cat [tabby]",),
)


def rendered(*reports: ImageReport, width: int = 100) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render_table(reports))
    return capture.get()


def test_json() -> None:
    report = ImageReport("a.jpg", CAT, 12.3456, (640, 480))
    assert json.loads(json.dumps(report.to_dict())) == {
        "image": "a.jpg",
        "width": 640,
        "height": 480,
        "ms": 12.35,
        "detections": [
            {
                "label": "cat [tabby]",
                "class_id": 0,
                "score": 0.8765,
                "box_xyxy": [1.0, 2.0, 300.13, 400.0],
            }
        ],
    }
    assert ImageReport("b.jpg", error=InvalidInputError("no image")).to_dict() == {
        "image": "b.jpg",
        "error": {"type": "InvalidInputError", "message": "no image"},
    }


def test_table() -> None:
    text = rendered(
        ImageReport("photos/a.jpg", CAT, 12.3456),
        ImageReport("one/same.jpg", CAT[:0], 5.0),
        ImageReport("two/same.jpg", CAT, 5.0),
        ImageReport("bad[1].jpg", error=InvalidInputError("no [red]image")),
    )
    lines = [" ".join(line.replace("│", "|").split()) for line in text.splitlines()]
    assert "| a.jpg | cat [tabby] | 0.88 | 1 2 300 400 | 12.3 |" in lines
    assert "one/same.jpg" in text
    assert "two/same.jpg" in text
    assert "nothing found" in text
    assert "bad[1].jpg" in text
    assert "no [red]image" in text


def test_names_that_are_no_text() -> None:
    report = ImageReport("caf\udce9.jpg", CAT, 1.0)
    assert "caf\N{REPLACEMENT CHARACTER}.jpg" in rendered(report)
    assert json.loads(json.dumps(report.to_dict()))["image"] == "caf\udce9.jpg"


def test_empty_and_narrow() -> None:
    assert "photo" in rendered()
    assert all(
        len(line) <= 60 for line in rendered(ImageReport("x" * 99, CAT), width=60).split("\n")
    )
