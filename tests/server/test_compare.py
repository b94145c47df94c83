"""The comparison with other ways to serve: every side is measured, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytest.importorskip("flask")
pytest.importorskip("litserve")
pytest.importorskip("openvino")

import peers.process
from benchmark import stage_models
from detserve.repository import DetectorRepository
from local_server import TritonServer
from peers.errors import ComparisonError
from peers.process import PeerProcess
from peers.settings import PEERS, Setting, settings_of
from peers.sides import EnsembleSide, PeerSide, check_same_answers, measure
from peers.variant import int8_variant, with_engine, with_variant
from photos import PHOTOS, jpeg

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


class Family:
    """All processes that a process has started, also those that outlive it."""

    def __init__(self, pid: int) -> None:
        self.members: dict[tuple[int, float], psutil.Process] = {}
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            try:
                for process in self._root.children(recursive=True):
                    self.members[process.pid, process.create_time()] = process
            except psutil.NoSuchProcess:
                continue

    def commands(self) -> str:
        """The command lines of those that live."""
        found = []
        for process in list(self.members.values()):
            try:
                found.append(" ".join(process.cmdline()))
            except psutil.NoSuchProcess:
                continue
        return "\n".join(found)

    def stop_watching(self) -> None:
        self._done.set()
        self._thread.join()

    def assert_gone(self, timeout: float = 20) -> None:
        """Wait until none lives; fail if that does not come."""
        self.stop_watching()
        assert self.members, "it has started no process"
        _, alive = psutil.wait_procs(list(self.members.values()), timeout)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@contextmanager
def started(*command: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], Family]]:
    """A command with a folder of its own for temporary files, and what it starts."""
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, *command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "TMPDIR": str(folder),
            "PYTHONPATH": os.pathsep.join(map(str, (SCRIPTS, ROOT, ROOT / "clients"))),
        },
    )
    family = Family(process.pid)
    try:
        with process:
            yield process, family
    finally:
        family.stop_watching()
        process.kill()
        for member in family.members.values():
            if member.is_running():
                member.kill()


def folders_of(process: subprocess.Popen[str], temporary: Path) -> list[Path]:
    """What a comparison has left of its temporary folders."""
    folders = Path("/tmp").glob(f"detserve-peer-{process.pid}-*")
    return [*folders, *temporary.glob("detserve-*")]


def command(repository: Path, output: Path, *options: str) -> tuple[str, ...]:
    return (
        *(str(SCRIPTS / "compare.py"), "--model-repository", str(repository)),
        *("--output", str(output), "--rounds", "1", "--no-trials", "--variant", "none", *options),
    )


@pytest.fixture(params=list(PEERS))
def peer(request: pytest.FixtureRequest, repository: Path) -> Iterator[PeerSide]:
    setting = settings_of(request.param, 2)[0]
    with PeerProcess(setting, repository) as process:
        yield PeerSide(request.param, process)


def test_every_side_is_measured_and_nothing_is_left(repository: Path, tmp_path: Path) -> None:
    output, temporary = tmp_path / "output", tmp_path / "tmp"
    options = ("--seconds", "1", "--concurrency", "2", "4", "--http", "--check")
    with started(*command(repository, output, *options), folder=temporary) as (process, family):
        printed, errors = process.communicate(timeout=200)
        assert (output / "compare.json").exists(), errors
        family.assert_gone()
    assert folders_of(process, temporary) == []

    results = json.loads((output / "compare.json").read_text())
    assert set(results["sides"]) == {
        *("ensemble", "ensemble, HTTP", "ensemble, OpenVINO"),
        *PEERS.values(),
    }
    assert "the same order in 4 of 4 photos, within" in results["notes"]["ensemble, OpenVINO"][0]
    for name, levels in results["sides"].items():
        assert name in printed
        for row in levels.values():
            assert row["images_per_s"] > 0, name
            assert 0 < row["p50_ms"] <= row["p99_ms"], name
            assert row["cpu_ms_per_image"] > 0, name
            assert row["errors"] == {}, name
            assert set(row["ratios"]) == {"limit", *PEERS}, name
    assert results["limit"]["images_per_s"] > 0
    assert len(results["claims"]) == 6  # two peers, and three lines of ensembles
    assert process.returncode == int(not all(claim["held"] for claim in results["claims"]))
    assert (output / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_ends_everything(repository: Path, tmp_path: Path) -> None:
    output, temporary = tmp_path / "output", tmp_path / "tmp"
    options = ("--seconds", "30", "--concurrency", "2")
    with started(*command(repository, output, *options), folder=temporary) as (process, family):
        deadline = time.monotonic() + 100
        while "peers.litserve_service" not in family.commands():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "interrupted: nothing was written"
        assert "Traceback" not in errors
        family.assert_gone()
    assert folders_of(process, temporary) == []
    assert not output.exists()


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("name", list(PEERS))
def test_a_peer_ends_with_the_process_that_started_it(
    name: str, paused: bool, repository: Path, tmp_path: Path
) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from peers.process import PeerProcess; from peers.settings import settings_of\n"
        "if __name__ == '__main__':\n"
        f"    with PeerProcess(settings_of({name!r}, 2)[0], Path({str(repository)!r})) as peer:\n"
        f"        peer.pause() if {paused} else None\n"
        "        print('started', flush=True); time.sleep(600)\n"
    )
    with started("-c", script, folder=tmp_path / "tmp") as (process, family):
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.2)  # for the last look at its processes
        process.kill()
        process.communicate()
        family.assert_gone()
        assert folders_of(process, tmp_path) == []


def test_peers_answer_as_the_ensemble_and_refuse_a_bad_image(
    peer: PeerSide, server: TritonServer, repository: Path
) -> None:
    ensemble = EnsembleSide("ensemble", server, stage_models(repository), server.grpc_url)
    photos = [jpeg(name) for name in PHOTOS]
    check_same_answers(ensemble, peer, photos)

    peer.resume()
    with pytest.raises(ComparisonError, match=r"answers 400: .*not a JPEG"):
        peer.detect(b"no image")
    assert peer.detect(photos[0])["detections"]  # and goes on


def test_batches_are_answered_as_single_images(server: TritonServer, repository: Path) -> None:
    batched = Setting("litserve", "batches", ("--batch", "4", "--batch-timeout", "0.05"))
    photos = [jpeg(name) for name in PHOTOS]
    with PeerProcess(batched, repository) as process:
        side = PeerSide("litserve", process)
        ensemble = EnsembleSide("ensemble", server, stage_models(repository), server.grpc_url)
        check_same_answers(ensemble, side, photos)
        row = measure(side, photos, concurrency=8, seconds=1, warm_up=0.5)
    assert row["errors"] == {}
    assert row["images_per_s"] > 0


def test_a_peer_that_does_not_start_is_named(tmp_path: Path) -> None:
    setting = Setting("flask", "no repository")
    with (
        pytest.raises(ComparisonError, match=r"flask \(no repository\) ended with status 1.*"),
        PeerProcess(setting, tmp_path),
    ):
        pass


@pytest.mark.parametrize("name", list(PEERS))
def test_a_port_that_is_taken_meanwhile_costs_one_attempt(
    name: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_free = peers.process.free_port
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = [other.getsockname()[1], any_free()]
        monkeypatch.setattr(peers.process, "free_port", lambda: ports.pop(0))
        with PeerProcess(settings_of(name, 2)[0], repository) as process:
            assert ports == []
            assert process.url.startswith("http://127.0.0.1:")


def test_the_int8_variant_is_made_once_and_served_as_the_detector_is(
    repository: Path, tmp_path: Path
) -> None:
    model = DetectorRepository(repository).model_file()
    variant = int8_variant(model, None, tmp_path / "cache")
    assert variant.model.stat().st_size < model.stat().st_size / 2
    assert any("agreement" in note for note in variant.notes)
    made = variant.model.stat().st_mtime_ns
    assert int8_variant(model, None, tmp_path / "cache") == variant
    assert variant.model.stat().st_mtime_ns == made
    assert len(list((tmp_path / "cache").iterdir())) == 1

    with_variant(repository, variant, tmp_path / "copy")
    original, copy = DetectorRepository(repository), DetectorRepository(tmp_path / "copy")
    assert copy.model_file().read_bytes() == variant.model.read_bytes()
    assert [config.instance_group for config in copy.configs] == [
        config.instance_group for config in original.configs
    ]


def test_the_same_file_is_served_by_another_backend_and_peers_run_it_too(
    repository: Path, tmp_path: Path
) -> None:
    with_engine(repository, "openvino", tmp_path / "copy")
    original, copy = DetectorRepository(repository), DetectorRepository(tmp_path / "copy")
    assert copy.backend == "openvino"
    assert copy.model_file().read_bytes() == original.model_file().read_bytes()
    assert [config.instance_group[0].count for config in copy.configs[:3]] == [
        config.instance_group[0].count for config in original.configs[:3]
    ]
    setting = Setting("flask", "1 thread", ("--threads", "1"))
    with PeerProcess(setting, tmp_path / "copy") as process:
        labels = {
            one["label"] for one in PeerSide("flask", process).detect(jpeg("chelsea"))["detections"]
        }
    assert "cat" in labels


def test_a_variant_without_images_is_refused(repository: Path, tmp_path: Path) -> None:
    model = DetectorRepository(repository).model_file()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComparisonError, match="no images"):
        int8_variant(model, tmp_path / "empty", tmp_path / "cache")
