"""``detect --local`` answers as the server does."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from detection_client import (
    AsyncDetectionClient,
    DeadlineExceededError,
    DetectionClientError,
    Detections,
    InvalidInputError,
    LocalClient,
)
from local_server import TritonServer
from photos import PHOTOS, jpeg, photo_path
from tests.server.test_cli import ROOT, detect, lines
from tests.server.test_parity import assert_same


def untimed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "ms"} for line in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in PHOTOS:
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(name))
    (tmp_path / "broken.jpg").write_bytes(jpeg("coffee")[:5000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    return tmp_path


@pytest.mark.parametrize(
    "options", [(), ("--score-threshold", "0.1", "--iou-threshold", "0.9", "--max-detections", "5")]
)
def test_same_output_as_from_the_server(
    server: TritonServer, folder: Path, options: tuple[str, ...]
) -> None:
    served = detect(folder, *options, server=server.grpc_url)
    local = detect(folder, "--local", *options)
    assert (served.returncode, local.returncode) == (1, 1)
    expected = untimed(lines(served))
    assert len(expected) == len(PHOTOS) + 3
    assert [line.get("error") for line in untimed(lines(local))] == [
        line.get("error") for line in expected
    ]
    for ours, theirs in zip(untimed(lines(local)), expected, strict=True):
        if "error" in ours:
            continue
        assert [found["label"] for found in ours["detections"]] == [
            found["label"] for found in theirs["detections"]
        ]
        for one, other in zip(ours["detections"], theirs["detections"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=2e-4)
            assert one["box_xyxy"] == pytest.approx(other["box_xyxy"], abs=0.02)


def test_calls_are_those_of_the_asyncio_client(server: TritonServer, repository: Path) -> None:
    photos = [jpeg(name) for name in PHOTOS]

    async def ask(client: AsyncDetectionClient) -> list[Detections | DetectionClientError]:
        async with client:
            (score,) = (await client.detect(photos[0], max_detections=1)).scores
            found: list[Detections | DetectionClientError] = [
                await client.detect(photos[0], score_threshold=float(score))
            ]
            found += await client.detect_batch([b"none", *photos], return_exceptions=True)
            found += [one async for one in client.detect_stream(photos)]
            with pytest.raises(InvalidInputError) as refused:
                await client.detect(photos[0], max_detections=301)
            return [*found, refused.value]

    served = asyncio.run(ask(AsyncDetectionClient(server.grpc_url)))
    local = asyncio.run(ask(LocalClient(repository)))
    for ours, theirs in zip(local, served, strict=True):
        if isinstance(ours, Detections) and isinstance(theirs, Detections):
            assert_same(ours, theirs)
        else:
            assert (type(ours), str(ours)) == (type(theirs), str(theirs))


def test_a_deadline_and_a_closed_client(repository: Path) -> None:
    async def work() -> None:
        client = LocalClient(repository, workers=1)
        with pytest.raises(DeadlineExceededError, match="no answer from local:"):
            await client.detect(jpeg("astronaut"), timeout=0.001)
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.detect(jpeg("astronaut"))

    asyncio.run(work())
    assert not [one for one in threading.enumerate() if one.name.startswith("detect-local")]


def test_from_another_folder(repository: Path, tmp_path: Path) -> None:
    found = detect(photo_path("chelsea"), "--local", cwd=tmp_path)
    assert lines(found)[0]["detections"][0]["label"] == "cat"
    named = detect(photo_path("chelsea"), "--local", "--repository", repository, cwd=tmp_path)
    assert untimed(lines(named)) == untimed(lines(found))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--local", "--repository", "nowhere"], "nowhere has no 'detection'"),
        (["--local", "--model", "other"], "has no 'other'"),
        (["--local", "--server", "grpc://host:1"], "--local needs no --server"),
        (["--repository", str(ROOT)], "--repository is for --local"),
    ],
)
def test_what_cannot_be(tmp_path: Path, arguments: list[str], says: str) -> None:
    refused = detect(photo_path("coffee"), *arguments, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert says in refused.stderr.decode()
    assert b"Traceback" not in refused.stderr
