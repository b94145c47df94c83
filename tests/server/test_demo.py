"""The demo and the README's examples, run as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from local_server import TritonServer
from photos import jpeg

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


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", python_blocks(), ids=lambda code: code.splitlines()[0])
def test_readme_python(server: TritonServer, tmp_path: Path, code: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg("chelsea"))
    here = server.grpc_url.removeprefix("grpc://")
    assert "127.0.0.1:8001" in code
    ran = subprocess.run(
        [sys.executable, "-c", code.replace("127.0.0.1:8001", here)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
