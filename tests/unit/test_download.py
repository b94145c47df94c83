"""Downloading from a file server on this machine that misbehaves on purpose."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import ssl
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from download import DownloadError, download
from tests.file_server import FileServer

CONTENT = os.urandom(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(**{"model.onnx": CONTENT}) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "model.onnx"


def get(server: FileServer, target: Path, name: str = "model.onnx", **options: Any) -> Path:
    defaults = {"timeout": 5.0, "attempts": 3, "first_pause": 0.01}
    return download(f"{server.url}/{name}", target, **{**defaults, **options})


def only(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_file(server: FileServer, target: Path) -> None:
    assert get(server, target, sha256=SHA256) == target
    assert target.read_bytes() == CONTENT
    assert only(target)
    assert server.asked == [None]


def test_redirects_are_followed_and_resumed(server: FileServer, target: Path) -> None:
    server.drop_after = [300_000]
    get(server, target, "moved.onnx")
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, None, "bytes=300000-", "bytes=300000-"]


@pytest.mark.parametrize("sha256", ["", SHA256])
def test_dropped_connections_are_resumed(server: FileServer, target: Path, sha256: str) -> None:
    server.drop_after = [100_000, 0, 250_000, 400_000]
    get(server, target, sha256=sha256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [
        None, "bytes=100000-", "bytes=100000-", "bytes=350000-", "bytes=750000-"
    ]  # fmt: skip


def test_an_interrupted_download_goes_on_in_the_next_call(server: FileServer, target: Path) -> None:
    server.drop_after = [600_000]
    with pytest.raises(DownloadError, match=r"ended after 600,000 of 1,000,000 .* run it again"):
        get(server, target, attempts=1)
    assert not target.exists()
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=600000-"]
    assert only(target)


def test_a_file_that_changed_meanwhile_is_begun_anew(server: FileServer, target: Path) -> None:
    server.drop_after = [600_000]
    with pytest.raises(DownloadError):
        get(server, target, attempts=1)
    server.files["/model.onnx"] = changed = CONTENT[::-1]
    get(server, target)
    assert target.read_bytes() == changed


def test_pieces_of_two_versions_without_etags_are_noticed(server: FileServer, target: Path) -> None:
    server.etags = False
    server.files["/model.onnx"] = CONTENT[::-1]
    server.drop_after = [600_000]
    with pytest.raises(DownloadError):
        get(server, target, attempts=1, sha256=SHA256)
    server.files["/model.onnx"] = CONTENT
    get(server, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=600000-", None]


def test_without_etag_and_hash_nothing_is_resumed(server: FileServer, target: Path) -> None:
    server.etags = False
    server.drop_after = [600_000]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_server_without_ranges_begins_anew(server: FileServer, target: Path) -> None:
    server.ranges = False
    server.drop_after = [900_000, 100_000]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=900000-", "bytes=100000-"]


def test_a_server_without_ranges_is_given_up(server: FileServer, target: Path) -> None:
    server.ranges = False
    server.drop_after = [900_000, 100_000, 300_000, 200_000, 400_000]
    with pytest.raises(DownloadError, match="3 times in a row"):
        get(server, target)


def test_a_part_that_was_complete_already(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    part = target.with_name("model.onnx.part")
    part.write_bytes(CONTENT)
    url = f"{server.url}/model.onnx"
    part.with_name(part.name + ".json").write_text(json.dumps({"url": url, "validator": ""}))
    get(server, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000000-"]
    target.unlink()
    part.write_bytes(CONTENT + b"more than there is")
    part.with_name(part.name + ".json").write_text(json.dumps({"url": url, "validator": ""}))
    get(server, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert only(target)


def test_a_part_of_another_address_is_not_used(server: FileServer, target: Path) -> None:
    server.files["/other.onnx"] = CONTENT[::-1]
    server.drop_after = [600_000]
    with pytest.raises(DownloadError):
        get(server, target, "other.onnx", attempts=1)
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_wrong_content_names_both_hashes_and_stays_nowhere(
    server: FileServer, target: Path
) -> None:
    server.files["/model.onnx"] = b"<html>please log in</html>"
    found = hashlib.sha256(server.files["/model.onnx"]).hexdigest()
    with pytest.raises(DownloadError, match=f"SHA-256 is {found}, wanted is {SHA256}"):
        get(server, target, sha256=SHA256)
    assert list(target.parent.iterdir()) == []
    assert server.asked == [None]


def test_refusals_are_final_and_overload_is_not(server: FileServer, target: Path) -> None:
    with pytest.raises(DownloadError, match="HTTP 404 Not Found"):
        get(server, target, "gone.onnx")
    assert len(server.asked) == 1
    server.answers = [503, 429]
    get(server, target)
    assert target.read_bytes() == CONTENT
    server.answers = [500, 502, 504]
    with pytest.raises(DownloadError, match="HTTP 504 Gateway Timeout, 3 times in a row"):
        get(server, target)
    assert target.read_bytes() == CONTENT  # what was there stays


def test_a_server_that_stalls(server: FileServer, target: Path) -> None:
    server.stall = True
    with pytest.raises(DownloadError, match=r"the connection broke \(timed out\)"):
        get(server, target, timeout=0.2, attempts=1)
    server.stall = False
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=500000-"]


def test_nobody_there(target: Path) -> None:
    with pytest.raises(DownloadError, match=r"no connection .*refused.*2 times in a row"):
        download("http://127.0.0.1:9/m", target, attempts=2, first_pause=0.01)


def test_a_certificate_that_is_not_trusted_is_final(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = ssl.SSLCertVerificationError("bad")
    reason.verify_message = "self-signed certificate"

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(reason)

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DownloadError, match=r"not trusted \(self-signed .*SSL_CERT_FILE"):
        download("https://127.0.0.1:9/m", target, first_pause=600)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "model.onnx"])
def test_only_http(target: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="no http:// or https:// address"):
        download(url, target)


def test_pauses_grow(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("download.time.sleep", pauses.append)
    server.answers = [503] * 4
    with pytest.raises(DownloadError):
        get(server, target, attempts=4, first_pause=8)
    assert len(pauses) == 3
    for pause, longest in zip(pauses, (8, 16, 32), strict=True):
        assert longest / 2 <= pause <= longest


def test_one_at_a_time(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    with (target.parent / ".model.onnx.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is downloading"):
            get(server, target)
    get(server, target)
    assert only(target)
