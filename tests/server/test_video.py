"""Videos through the command and a real server: in order, complete, and back after a loss."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from local_server import TritonServer

ROOT = Path(__file__).resolve().parents[2]
VTEST = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
SYSTEM_PYTHON = "/usr/bin/python3"
# Serves argv[2] at rtsp://127.0.0.1:argv[1]/video.
RTSP_SERVER = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer, GLib
Gst.init(None)
server, media = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
server.set_service(sys.argv[1])
media.set_launch(
    f"( filesrc location={sys.argv[2]} ! avidemux ! decodebin ! videoconvert !"
    " x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 !"
    " rtph264pay name=pay0 pt=96 )"
)
server.get_mount_points().add_factory("/video", media)
server.attach(None)
GLib.MainLoop().run()
"""


def start_detect(*arguments: str | Path, server: TritonServer) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "clients")])
    return subprocess.Popen(
        [sys.executable, "-m", "detection_client", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, "DETSERVE_SERVER": server.grpc_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def detect(*arguments: str | Path, server: TritonServer) -> tuple[int, list[dict[str, Any]], str]:
    process = start_detect(*arguments, server=server)
    out, err = process.communicate(timeout=200)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.0, (320, 240))
    for index in range(40):
        pixels = np.full((240, 320, 3), 90, np.uint8)
        cv2.circle(pixels, (20 + 6 * index, 120), 30, (40, 180, 250), -1)
        writer.write(pixels)
    writer.release()
    return path


def count_frames(path: Path) -> tuple[int, float, tuple[int, int]]:
    capture = cv2.VideoCapture(str(path))
    fps, count, size = capture.get(cv2.CAP_PROP_FPS), 0, (0, 0)
    while True:
        there, pixels = capture.read()
        if not there:
            capture.release()
            return count, fps, size
        count, size = count + 1, (pixels.shape[1], pixels.shape[0])


def test_a_clip_is_answered_in_order_and_saved_whole(
    server: TritonServer, clip: Path, tmp_path: Path
) -> None:
    code, lines, err = detect(clip, "--save", tmp_path / "out", server=server)
    assert code == 0, err
    assert [line["frame"] for line in lines] == list(range(40))
    assert all(line["width"] == 320 and "detections" in line for line in lines)
    assert count_frames(tmp_path / "out" / "clip.mp4") == (40, 12.0, (320, 240))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.mp4"]


def test_several_clips_and_one_that_is_missing(server: TritonServer, clip: Path) -> None:
    code, lines, err = detect(clip, clip, clip.with_name("gone.mp4"), server=server)
    assert code == 1, err
    frames = [line["frame"] for line in lines if "frame" in line]
    assert sorted(frames) == sorted([*range(40), *range(40)])
    assert [line["error"]["type"] for line in lines if "error" in line] == ["VideoError"]


def test_photos_and_videos_are_not_mixed(server: TritonServer, clip: Path) -> None:
    code, lines, err = detect(clip, "photo.jpg", server=server)
    assert (code, lines) == (2, [])
    assert "photos and videos need a command each" in err


def test_pedestrians_all_795_frames(server: TritonServer) -> None:
    if not VTEST.is_file():
        pytest.skip(f"no {VTEST}: it comes with Debian's opencv-doc")
    code, lines, err = detect(VTEST, server=server)
    assert code == 0, err
    assert [line["frame"] for line in lines] == list(range(795))
    people = sum(any(one["label"] == "person" for one in line["detections"]) for line in lines)
    assert people > 700


def start_rtsp(port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([SYSTEM_PYTHON, "-c", RTSP_SERVER, str(port), str(VTEST)])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.1)
    process.kill()
    process.wait()
    pytest.fail("the RTSP server does not start")


def can_serve_rtsp() -> bool:
    check = (
        "import gi, sys; gi.require_version('Gst', '1.0');"
        " gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst;"
        " Gst.init(None);"  # the decoder of the video, and the encoder
        " sys.exit(not all(map(Gst.ElementFactory.find, ('avdec_mpeg4', 'x264enc'))))"
    )
    python = Path(SYSTEM_PYTHON)
    return (
        python.exists()
        and not subprocess.run([python, "-c", check], capture_output=True, check=False).returncode
    )


def test_an_rtsp_server_that_is_killed_and_started_again(
    server: TritonServer, tmp_path: Path
) -> None:
    if not (VTEST.is_file() and can_serve_rtsp()):
        pytest.skip(
            "needs Debian's opencv-doc, python3-gi, gir1.2-gst-rtsp-server-1.0 and GStreamer's"
            " plugins ugly and libav"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rtsp = start_rtsp(port)
    process = start_detect(
        f"rtsp://127.0.0.1:{port}/video", "--save", tmp_path / "out", server=server
    )
    try:
        assert process.stdout is not None
        before = [json.loads(process.stdout.readline()) for _ in range(10)]
        rtsp.kill()
        rtsp.wait()
        time.sleep(1)
        rtsp = start_rtsp(port)
        after: list[dict[str, Any]] = []
        while not after or after[-1]["time_s"] - after[0]["time_s"] < 15:
            after.append(json.loads(process.stdout.readline()))
            gaps = [b["time_s"] - a["time_s"] for a, b in pairwise(after)]
            if gaps and max(gaps) > 1 and gaps[-1] < 1:
                break  # lost, and frames come again
        else:
            pytest.fail("no frame after the restart")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        for one in (rtsp, process):
            one.kill()
            one.wait()
    frames = [line["frame"] for line in (*before, *after, *map(json.loads, out.splitlines()))]
    assert frames == sorted(set(frames))
    assert process.returncode == 130
    # "was lost", or by the next look "cannot open": the progress tells the latest state.
    assert b", connecting again" in err
    assert b"Traceback" not in err
    assert count_frames(tmp_path / "out" / "127.0.0.1-video.mp4")[0] >= len(before) + len(after)
