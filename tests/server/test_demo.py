"""The demo, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WANTED = {
    "astronaut.png": {"person"},
    "coffee.png": {"cup", "dining table"},
    "chelsea.png": {"cat"},
    "motorcycle_left.png": {"motorcycle"},
}


def test_demo(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts/demo.py", "--output", tmp_path / "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    reports = json.loads((tmp_path / "out/detections.json").read_text())
    found = {r["image"]: {one["label"] for one in r["detections"]} for r in reports}
    assert {name: labels & found[name] for name, labels in WANTED.items()} == WANTED
    for label in ("person", "cup", "dining table", "cat", "motorcycle"):
        assert label in ran.stdout
    for name in WANTED:
        with Image.open(tmp_path / "out" / name.replace(".png", ".jpg")) as image:
            image.load()
            assert min(image.size) >= 300
