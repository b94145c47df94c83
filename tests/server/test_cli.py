"""The command ``detect`` as users start it: a process of its own, with pipes and terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detserve import __version__
from local_server import TritonServer
from photos import PHOTOS, jpeg, photo_path
from tests.images import photo

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "detection_client"]


def environment(**variables: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "clients")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}


def detect(
    *arguments: str | Path,
    server: str = "grpc://127.0.0.1:1",
    cwd: Path | None = None,
    stdin: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Run the command with its output in pipes."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(DETSERVE_SERVER=server),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def lines(result: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of the four photos in JPEG, and a picture in PNG below it."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in PHOTOS:
        (folder / f"{name}.jpg").write_bytes(jpeg(name))
    shutil.copy(photo_path("chelsea"), folder / "more" / "cat.png")
    return folder


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: TritonServer) -> str:
    return server.grpc_url if request.param == "grpc" else server.http_url


def test_json_lines_in_a_pipe(url: str, photos: Path) -> None:
    result = detect("photos", server=url, cwd=photos.parent)
    assert (result.returncode, result.stderr) == (0, b"")
    found = lines(result)
    assert [one["image"] for one in found] == [
        *(f"photos/{name}.jpg" for name in sorted(PHOTOS)),
        "photos/more/cat.png",
    ]
    cat = found[1]
    assert (cat["width"], cat["height"]) == photo("chelsea").size
    assert cat["ms"] > 0
    assert [one["label"] for one in cat["detections"]] == ["cat"]
    assert set(cat["detections"][0]) == {"label", "class_id", "score", "box_xyxy"}


def test_one_bad_image_among_good_ones(url: str, photos: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"no image")
    (photos / "empty.jpg").touch()
    result = detect(
        "chelsea.jpg", "bad.jpg", "none*.jpg", "empty.jpg", "coffee.jpg", server=url, cwd=photos
    )
    assert (result.returncode, result.stderr) == (1, b"")
    found = lines(result)
    assert [one["image"] for one in found] == [
        "chelsea.jpg",
        "bad.jpg",
        "none*.jpg",
        "empty.jpg",
        "coffee.jpg",
    ]
    assert ["error" in one for one in found] == [False, True, True, True, False]
    assert found[1]["error"]["type"] == "InvalidInputError"
    assert "not a JPEG" in found[1]["error"]["message"]
    assert found[2]["error"]["message"] == "the pattern matches no image"


def test_the_order_is_kept_with_requests_overlapping(server: TritonServer, photos: Path) -> None:
    arguments = [f"{name}.jpg" for name in PHOTOS] * 12
    result = detect(*arguments, "--concurrency", "8", server=server.grpc_url, cwd=photos)
    assert result.returncode == 0
    assert [one["image"] for one in lines(result)] == arguments


def test_options_reach_the_server(url: str, photos: Path) -> None:
    options = ["--score-threshold", "0", "--iou-threshold", "1", "--max-detections", "9"]
    (found,) = lines(detect("chelsea.jpg", *options, server=url, cwd=photos))
    assert len(found["detections"]) == 9
    result = detect("chelsea.jpg", "--max-detections", "999", server=url, cwd=photos)
    assert result.returncode == 1
    assert "at most 300" in lines(result)[0]["error"]["message"]


def test_standard_input(url: str) -> None:
    result = detect("-", server=url, stdin=jpeg("coffee"))
    (found,) = lines(result)
    assert found["image"] == "-"
    assert {one["label"] for one in found["detections"]} == {"cup", "dining table"}


def test_the_option_goes_before_the_variable(url: str, photos: Path) -> None:
    result = detect("chelsea.jpg", "--server", url, cwd=photos)
    assert result.returncode == 0


def test_annotated_pictures(server: TritonServer, photos: Path) -> None:
    shutil.copy(photos / "coffee.jpg", photos / "more" / "chelsea.jpg")
    (photos / "bad.jpg").write_bytes(b"no image")
    result = detect("photos", "--save", "out/deep", server=server.grpc_url, cwd=photos.parent)
    assert result.returncode == 1
    out = photos.parent / "out" / "deep"
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.jpg" for name in PHOTOS),
        "cat.png",
        "chelsea-2.jpg",
    }
    for path in out.iterdir():
        with Image.open(path) as picture:
            assert picture.format == {".jpg": "JPEG", ".png": "PNG"}[path.suffix]
    with Image.open(out / "chelsea-2.jpg") as picture:
        assert picture.size == photo("coffee").size
    with Image.open(out / "cat.png") as picture:
        assert picture.tobytes() != photo("chelsea").tobytes()


def test_a_picture_that_cannot_be_saved(server: TritonServer, photos: Path) -> None:
    (photos / "out" / "coffee.jpg").mkdir(parents=True)
    result = detect(
        "coffee.jpg", "chelsea.jpg", "--save", "out", server=server.grpc_url, cwd=photos
    )
    assert result.returncode == 1
    assert ["error" in one for one in lines(result)] == [True, False]
    assert lines(result)[0]["error"]["type"] == "SaveError"
    assert {path.name for path in (photos / "out").iterdir()} == {"coffee.jpg", "chelsea.jpg"}


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_no_server(scheme: str, photos: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    start = time.monotonic()
    result = detect("photos", "--server", url, cwd=photos.parent)
    assert time.monotonic() - start < 10
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.decode() == (
        f"detect: cannot connect to {url}: connection refused; start a server with `make serve`,"
        " or name another with --server or DETSERVE_SERVER\n"
    )


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_mute_server(scheme: str, photos: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        result = detect("photos", "--server", url, "--timeout", "0.5", cwd=photos.parent)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.decode() == (
        f"detect: no answer from {url} within 0.5 s; is it a DetServe server?\n"
    )


def test_unknown_model(url: str, photos: Path) -> None:
    result = detect("photos", "--model", "nope", server=url, cwd=photos.parent)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"detect: ")
    assert b"'nope' is not found; name another model with --model\n" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a photo, a video or a --camera"),
        (["a.jpg", "--score-threshold", "2"], "2 is not between 0 and 1"),
        (["a.jpg", "--iou-threshold", "x"], "'x' is not a number"),
        (["a.jpg", "--max-detections", "0"], "0 is not a whole number from 1"),
        (["a.jpg", "--timeout", "0"], "0 is not a number of seconds above 0"),
        (["a.jpg", "--timeout", "inf"], "'inf' is not a number"),
        (["a.jpg", "--server", "localhost"], "does not name a protocol"),
        (["a.jpg", "--colour"], "unrecognized"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str) -> None:
    result = detect(*arguments)
    assert (result.returncode, result.stdout) == (2, b"")
    assert says in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()


def test_saving_over_the_photos_is_refused(photos: Path) -> None:
    result = detect("photos", "--save", "photos", cwd=photos.parent)
    assert result.returncode == 2
    assert "would replace the image photos/astronaut.jpg" in result.stderr.decode()


def test_nothing_to_send_needs_no_server(tmp_path: Path) -> None:
    result = detect("none.jpg", cwd=tmp_path)
    assert result.returncode == 1
    assert lines(result)[0]["error"]["message"] == "there is no such file or folder"


def test_version_and_help() -> None:
    assert detect("--version").stdout.decode() == f"detect (DetServe) {__version__}\n"
    text = detect("--help").stdout.decode()
    for words in ("examples:", "DETSERVE_SERVER", "--save", "make serve", "exit status"):
        assert words in text


def test_a_reader_that_goes_away(server: TritonServer, photos: Path) -> None:
    arguments = [f"{name}.jpg" for name in PHOTOS] * 10
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(DETSERVE_SERVER=server.grpc_url),
        cwd=photos,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["image"] == arguments[0]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_ctrl_c(scheme: str, photos: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        with subprocess.Popen(
            [*COMMAND, str(photos), "--server", url],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ignored, and inherited as such, where the tests run in a shell's background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            connection, _ = listener.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                start = time.monotonic()
                output, errors = process.communicate(timeout=30)
                assert time.monotonic() - start < 3
    assert (process.returncode, output, errors) == (130, b"", b"")


def on_terminal(*arguments: str, server: str, cwd: Path, columns: int = 100) -> tuple[int, str]:
    """Run the command on a terminal; its exit status and what the terminal shows."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    variables = {"DETSERVE_SERVER": server, "TERM": "dumb", "COLUMNS": str(columns)}
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(**variables),
        cwd=cwd,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                data = os.read(main, 65536)
            except OSError:  # Linux's way to say that the other side was closed
                break
            if not data:
                break
            shown += data
    os.close(main)
    return process.returncode, shown.decode()


def test_a_table_on_a_terminal(url: str, photos: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"no image")
    status, shown = on_terminal(str(photos), server=url, cwd=photos)
    assert status == 1
    for words in ("photo", "label", "score", "box", "ms", "chelsea.jpg", "cat", "motorcycle"):
        assert words in shown
    assert "photos/s" in shown  # the progress bar
    rows = [[cell.strip() for cell in row.split("│")] for row in shown.splitlines() if "│" in row]
    cat = next(row for row in rows if "chelsea.jpg" in row)
    assert cat[2] == "cat"
    assert float(cat[3]) > 0.8
    assert len(cat[4].split()) == 4
    assert float(cat[5]) > 0


def test_json_on_a_terminal(server: TritonServer, photos: Path) -> None:
    status, shown = on_terminal("chelsea.jpg", "--json", server=server.grpc_url, cwd=photos)
    assert status == 0
    assert json.loads(shown)["detections"][0]["label"] == "cat"
