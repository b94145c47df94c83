"""A promotion under load loses no request; one of a bad model leaves everything as it was."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
import tritonclient.grpc.aio
import tritonclient.http
from onnx import helper, numpy_helper
from PIL import Image
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

import promote
from detection_client import DetectionClient
from local_server import TritonServer, find_control
from local_server._http import Connection
from local_server._probe import png
from promotion.exam import Exam
from promotion.model_server import ModelServer
from tests.models import write_detector
from tests.server.conftest import REPOSITORY, on_any_ports

SIZE = 300
LEFT, RIGHT = 10.0, 150.0  # where the two models find something, in pixels of the input
CLASS_OF = {LEFT: 1, RIGHT: 2}
IN_FLIGHT = 220
NOW = "smoke after switch"


FloatArray = npt.NDArray[np.float32]

# A detector that is fine for black images, as warm-up has them, and for no other.
BREAKING = """
<ir_version: 8, opset_import: ["" : 17]>
detector (uint8[N, 300, 300, 3] images) => (float[N, 300, 6] candidates) {
    numbers = Cast <to = 1> (images)
    brightest = ReduceMax <keepdims = 0> (numbers)
    level = Cast <to = 7> (brightest)
    BREAK
    all_rows = Add (rows, little)
    shape = Shape <end = 1> (images)
    ones = Constant <value_ints = [1, 1]> ()
    repeats = Concat <axis = 0> (shape, ones)
    candidates = Tile (all_rows, repeats)
}
"""
BREAKS = {
    # An error: a row that there is not.
    "fails": """
    row = Mul (level, three_hundred)
    little = Gather <axis = 0> (almost_nothing, row)
    """,
    # For hours.
    "hangs": """
    turns = Mul (level, three_hundred_millions)
    always = Constant <value_int = 1> ()
    go_on = Cast <to = 9> (always)
    little = Loop (turns, go_on, almost_nothing) <body = body
        (int64 turn, bool on, float[300, 6] before) => (bool still_on, float[300, 6] after) {
            still_on = Identity (on)
            after = Sin (before)
    }>
    """,
}


def rows(x: float, class_id: int | None = None) -> FloatArray:
    """Candidates of a model that finds two things of one class, wherever it looks."""
    found = np.zeros((300, 6), np.float32)
    found[:, 5] = CLASS_OF[x] if class_id is None else class_id
    found[0, :5], found[1, :5] = [x, 10, x + 40, 60, 0.9], [x, 100, x + 40, 150, 0.8]
    return found


def breaking_detector(path: Path, kind: str) -> Path:
    """Write a detector that is fine for black images, as warm-up has them, and for no other."""
    model = onnx.parser.parse_model(BREAKING.replace("BREAK", BREAKS[kind]))
    constants = {
        "rows": rows(RIGHT)[None],
        "almost_nothing": np.full((300, 6), 1e-6, np.float32),  # zeros would be optimised away
        "three_hundred": np.array([300], np.int64),
        "three_hundred_millions": np.array(3 * 10**8, np.int64),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in constants.items()
        if name in BREAKS[kind] + BREAKING
    )
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Detectors of the contract, good and bad."""
    folder = tmp_path_factory.mktemp("models")
    unknown = onnx.load(write_detector(folder / "unloadable.onnx", SIZE, rows(RIGHT)))
    unknown.graph.node[-1].domain = "nobody"
    unknown.opset_import.append(helper.make_opsetid("nobody", 1))
    onnx.save(unknown, folder / "unloadable.onnx")
    return {
        "left": write_detector(folder / "left.onnx", SIZE, rows(LEFT)),
        "right": write_detector(folder / "right.onnx", SIZE, rows(RIGHT)),
        "larger": write_detector(folder / "larger.onnx", 320, rows(RIGHT)),
        "not a number": write_detector(folder / "nan.onnx", SIZE, rows(LEFT) * np.float32("nan")),
        "finds nothing": write_detector(folder / "nothing.onnx", SIZE, rows(LEFT) * 0),
        "wrong class": write_detector(folder / "wrong.onnx", SIZE, rows(RIGHT, 7)),
        "unloadable": folder / "unloadable.onnx",
        "fails": breaking_detector(folder / "fails.onnx", "fails"),
        "hangs": breaking_detector(folder / "hangs.onnx", "hangs"),
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images: what either model finds is half of what there is."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    noise = np.random.default_rng(1)
    for number in range(4):
        pixels = noise.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        lines = [
            f"{class_id} {(x + 20) / SIZE} {y / SIZE} {40 / SIZE} {50 / SIZE}"
            for x, class_id in CLASS_OF.items()
            for y in (35, 125)
        ]
        (root / "labels" / f"{number}.txt").write_text("\n".join(lines))
    return root / "images"


def make_repository(folder: Path, model: Path) -> Path:
    """A copy of the repository with another detector."""
    ignored = shutil.ignore_patterns("__pycache__", "model.onnx", "generations.json", "*_v*")
    shutil.copytree(REPOSITORY, folder, ignore=ignored)
    shutil.copy(model, folder / "detector/1/model.onnx")
    for config in folder.glob("*/config.pbtxt"):
        text = config.read_text().replace("count: 2", "count: 1")  # to be quicker
        # Room for all of the load: what is lost is lost by the promotion.
        text = re.sub(r"max_queue_size: \d+", "max_queue_size: 1000", text)
        text = re.sub(r"(default_timeout_microseconds): \d+", r"\1: 60000000", text)
        config.write_text(text)
    return folder


@pytest.fixture(scope="module")
def serving(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server, with a response cache, of a repository that may be changed."""
    repository = make_repository(tmp_path_factory.mktemp("served") / "models", models["left"])
    with on_any_ports(repository, cache_mb=16, check_interval=0.3) as server:
        yield server


def repository_of(server: TritonServer) -> Path:
    control = find_control(server.grpc_url)
    assert control is not None
    return Path(control.model_repository)


def run(server: TritonServer, *arguments: object) -> int:
    return promote.main([*map(str, arguments), "--server", server.grpc_url, "--yes"])


def found(server: TritonServer, ensemble: str = "detection") -> float:
    """Where the server's model finds things: LEFT or RIGHT."""
    with DetectionClient(server.grpc_url, model=ensemble) as client:
        answer = client.detect(np.random.default_rng().integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    (x,) = {round(float(box[0])) for box in answer.boxes_xyxy}
    assert set(answer.class_ids) == {CLASS_OF[x]}
    return x


def files(repository: Path) -> dict[str, bytes]:
    """Everything of a repository but what Python caches."""
    paths = (path for path in repository.rglob("*") if "__pycache__" not in path.parts)
    return {
        str(path.relative_to(repository)): path.read_bytes() if path.is_file() else b""
        for path in paths
    }


def loaded(server: TritonServer) -> set[str]:
    control = find_control(server.grpc_url)
    assert control is not None
    assert control.secret is not None
    with ModelServer(server.grpc_url, (control.header, control.secret)) as models:
        return {name for name, states in models.states().items() if "READY" in states.values()}


@dataclass(frozen=True)
class Answer:
    """One request of the load."""

    sent: float
    answered: float
    error: str | None = None
    version: str = ""
    what: tuple[float, int] = (0.0, 0)


@dataclass
class Load:
    """Many requests at once over gRPC, and a few over HTTP, until `stop`."""

    server: TritonServer
    in_flight: int = IN_FLIGHT
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=lambda: asyncio.run(self._use_grpc()))]
        self._threads += [threading.Thread(target=self._use_http) for _ in range(2)]
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(self.answers) < 2 * self.in_flight and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> list[Answer]:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        return self.answers

    def _note(self, sent: float, result: object, version: str) -> None:
        boxes = result.as_numpy("detection_boxes")  # type: ignore[attr-defined]
        classes = result.as_numpy("detection_classes")  # type: ignore[attr-defined]
        count = int(result.as_numpy("num_detections")[0, 0])  # type: ignore[attr-defined]
        seen = {(round(float(boxes[0, i, 0])), int(classes[0, i])) for i in range(count)}
        what = seen.pop() if len(seen) == 1 else (-1.0, count)
        self.answers.append(Answer(sent, time.monotonic(), None, version, what))

    async def _use_grpc(self) -> None:
        address = self.server.grpc_url.removeprefix("grpc://")
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:

            async def user(number: int) -> None:
                turn = 0
                while not self._ending.is_set():
                    # Every other image has been asked about before: its answer may be cached.
                    turn += 1
                    colour = number * 1000 + turn if turn % 2 else number % 8
                    tensor = triton_grpc.InferInput("IMAGE", [1, 1], "BYTES")
                    tensor.set_data_from_numpy(np.array([[png(colour, SIZE)]], np.object_))
                    sent = time.monotonic()
                    try:
                        result = await client.infer("detection", [tensor], client_timeout=60)
                    except InferenceServerException as error:
                        self.answers.append(Answer(sent, time.monotonic(), str(error)))
                    else:
                        self._note(sent, result, result.get_response().model_version)

            await asyncio.gather(*(user(number) for number in range(self.in_flight)))

    def _use_http(self) -> None:
        address = self.server.http_url.removeprefix("http://")
        with tritonclient.http.InferenceServerClient(address) as client:
            while not self._ending.is_set():
                tensor = tritonclient.http.InferInput("IMAGE", [1, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[png(3, SIZE)]], np.object_))
                sent = time.monotonic()
                try:
                    result = client.infer("detection", [tensor])
                except (InferenceServerException, OSError) as error:
                    self.answers.append(Answer(sent, time.monotonic(), str(error)))
                else:
                    self._note(sent, result, result.get_response()["model_version"])


def wait_for(what: Callable[[], bool], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, f"not so within {timeout} s"
        time.sleep(0.05)


def test_under_load(
    serving: TritonServer, models: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    old = found(serving)
    new = RIGHT if old == LEFT else LEFT
    report = tmp_path / "report.json"
    load = Load(serving)
    try:
        model = models["right" if new == RIGHT else "left"]
        status = run(serving, model, "--images", images, "--json", report)
        ended = time.monotonic()
        time.sleep(0.5)
    finally:
        answers = load.stop()
    assert status == 0
    assert [answer.error for answer in answers if answer.error] == []
    kinds = {(answer.version, answer.what) for answer in answers}
    versions = {version for version, _ in kinds}
    assert len(versions) == 2
    assert kinds == {
        (min(versions, key=int), (old, CLASS_OF[old])),
        (max(versions, key=int), (new, CLASS_OF[new])),
    }
    switched = min(a.answered for a in answers if a.what[0] == new)
    over = sum(a.sent < switched <= a.answered for a in answers)
    print(f"{len(answers)} requests, {over} in flight over the switch, none lost")
    assert over >= 200
    assert {a.what[0] for a in answers if a.sent > ended} == {new}
    stages = {stage["stage"]: stage for stage in json.loads(report.read_text())["stages"]}
    assert stages["served accuracy"]["map"] == pytest.approx(0.5, abs=0.01)
    assert all(stage["passed"] for stage in stages.values())


@pytest.mark.parametrize(
    ("name", "options", "gate"),
    [
        ("unloadable", ["--no-local"], "does not load"),
        ("unloadable", [], "run in process: "),
        ("not a number", ["--no-local"], "smoke inference: .* finds nothing at all"),
        ("not a number", [], "run in process: .* not finite"),
        ("finds nothing", ["--no-local"], "smoke inference: .* finds nothing at all"),
        ("wrong class", ["--no-local"], r"served accuracy: mAP 0\.0000 is 0\.5\d* under"),
        ("wrong class", [], r"accuracy in process: mAP 0\.0000 is 0\.5\d* under"),
        ("fails", ["--no-local"], "smoke inference: an image of noise: "),
    ],
)
def test_bad_model(
    serving: TritonServer,
    models: dict[str, Path],
    images: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    options: list[str],
    gate: str,
) -> None:
    before, was, was_loaded = files(repository_of(serving)), found(serving), loaded(serving)
    load = Load(serving, in_flight=4)
    try:
        status = run(serving, models[name], "--images", images, *options)
    finally:
        answers = load.stop()
    error = capsys.readouterr().err
    assert status == 1
    assert re.search(gate, error), error
    assert "detection still is generation" in error
    assert {(a.error, a.what[0]) for a in answers} == {(None, was)}
    assert files(repository_of(serving)) == before
    assert loaded(serving) == was_loaded
    assert found(serving) == was


def test_bad_only_under_the_public_name(
    serving: TritonServer,
    models: dict[str, Path],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The new model's processes die right after the switch, in front of everybody."""
    was = found(serving)
    config = (repository_of(serving) / "detection/config.pbtxt").read_bytes()
    public = Exam.public
    reached = []

    def kill_then_ask(exam: Exam) -> None:
        used = {m for m in loaded(serving) if m.startswith("detector")}
        newest = max(used, key=lambda m: int(m.partition("_v")[2] or 0))
        for pid, model in serving.stub_pids().items():
            if model == newest:
                os.kill(pid, signal.SIGKILL)
        reached.append(newest)
        public(exam)

    monkeypatch.setattr(Exam, "public", kill_then_ask)
    assert run(serving, models["right" if was == LEFT else "left"], "--images", images) == 1
    error = capsys.readouterr().err
    assert f"error: {NOW}: an image of noise: " in error
    assert "roll back" in error
    assert found(serving) == was
    assert (repository_of(serving) / "detection/config.pbtxt").read_bytes() == config
    assert not (repository_of(serving) / reached[0]).exists()
    assert not {"detection_candidate", *reached} & loaded(serving)
    assert serving.health()["restarts"] == 0


def test_triton_starts_anew_after_the_switch(
    models: dict[str, Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is back with the old version, which of course passes every check."""
    repository = make_repository(tmp_path / "models", models["left"])
    public = Exam.public
    with on_any_ports(repository, check_interval=0.3) as server:

        def restart_then_ask(exam: Exam) -> None:
            assert found(server) == RIGHT
            os.kill(server.pid, signal.SIGKILL)
            wait_for(lambda: server.health()["restarts"] == 1, 40)
            wait_for(lambda: server.health()["status"] == "ok", 40)
            public(exam)

        monkeypatch.setattr(Exam, "public", restart_then_ask)
        assert run(server, models["right"], "--no-evaluate") == 1
        error = capsys.readouterr().err
        assert "error: the server has started anew meanwhile, without generation 2" in error
        assert "detection still is generation 1" in error
        assert found(server) == LEFT
        assert {n for n in loaded(server) if n.startswith("det")} == {"detection", "detector"}
        assert not (repository / "detector_v2").exists()
        monkeypatch.setattr(Exam, "public", public)
        assert run(server, models["right"], "--images", images) == 0
        assert found(server) == RIGHT


def test_rollback(serving: TritonServer, models: dict[str, Path], images: Path) -> None:
    was = found(serving)
    assert run(serving, models["right" if was == LEFT else "left"], "--images", images) == 0
    assert found(serving) != was
    load = Load(serving, in_flight=20)
    try:
        status = run(serving, "--rollback")
        ended = time.monotonic()
        time.sleep(0.3)
    finally:
        answers = load.stop()
    assert status == 0
    assert [answer.error for answer in answers if answer.error] == []
    assert {a.what[0] for a in answers if a.sent > ended} == {was}
    assert run(serving, "--rollback") == 1


def test_other_input_size_and_what_dies_afterwards(
    serving: TritonServer, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(serving, models["larger"], "--no-evaluate") == 0
    assert "preprocess_v" in capsys.readouterr().out
    # Boxes are mapped back from the larger input.
    expected = pytest.approx(RIGHT * SIZE / 320, abs=0.1)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    with DetectionClient(serving.grpc_url) as client:
        assert client.detect(image).boxes_xyxy[0, 0] == expected
        (model,) = (name for name in loaded(serving) if name.startswith("detector"))
        wait_for(lambda: model in serving.health()["models"])
        victims = {pid for pid, name in serving.stub_pids().items() if name == model}
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: serving.health()["models"][model]["reloads"] > 0)
        assert client.detect(image).boxes_xyxy[0, 0] == expected
    assert victims.isdisjoint(serving.stub_pids())
    assert serving.health()["restarts"] == 0
    assert {"detector", "detection_candidate"}.isdisjoint(serving.health()["models"])


def test_restart_serves_what_was_promoted(models: dict[str, Path], tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "models", models["left"])
    with on_any_ports(repository) as server:
        assert run(server, models["right"], "--no-evaluate") == 0
    with on_any_ports(repository) as server:
        assert found(server) == RIGHT
        # The version before is on disk, and costs nothing.
        assert set(server.stub_pids().values()) == {"preprocess", "detector_v2", "postprocess"}
        assert run(server, "--rollback") == 0
        assert found(server) == LEFT


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_control(
    serving: TritonServer,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    protocol: str,
) -> None:
    """As on another machine, where the launcher's file is not to be found."""
    control = find_control(serving.grpc_url)
    assert control is not None
    assert find_control(serving.http_url) == control
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    url = serving.grpc_url if protocol == "grpc" else serving.http_url
    command = [str(models["left"]), "--no-evaluate", "--server", url]
    command += ["--repository", control.model_repository]
    assert promote.main(command) == 1
    assert "--control-header NAME:VALUE" in capsys.readouterr().err
    header = f"{control.header}:{control.secret}"
    assert promote.main([*command, "--control-header", header]) == 0, capsys.readouterr().err
    assert found(serving) == LEFT


def test_another_repository_than_the_servers_is_refused(
    serving: TritonServer,
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(serving, models["left"], "--no-evaluate", "--repository", tmp_path) == 1
    assert f"not {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["served accuracy", "switch"])
def test_killed(serving: TritonServer, models: dict[str, Path], images: Path, moment: str) -> None:
    """However far it has come: the server goes on, and the next promotion finds its way."""
    was = found(serving)
    config = (repository_of(serving) / "detection/config.pbtxt").read_bytes()
    model = models["right" if was == LEFT else "left"]
    code = (
        "import os, sys, promote\n"
        "from promotion.stages import Stages\n"
        "done = Stages.stage.__wrapped__\n"
        "import contextlib\n"
        "@contextlib.contextmanager\n"
        "def stage(self, name):\n"
        "    yield from done(self, name)\n"
        f"    if name == {moment!r}: os.kill(os.getpid(), 9)\n"
        "Stages.stage = stage\n"
        "sys.exit(promote.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, model, "--images", images, "--server", serving.grpc_url]
    paths = [str(REPOSITORY.parent / part) for part in (".", "clients", "scripts")]
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.glob("detserve-promotion-*"))
    ended = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    for left in set(temporary.glob("detserve-promotion-*")) - before:
        shutil.rmtree(left)  # nobody can clean up after a SIGKILL outside of the repository
    assert (repository_of(serving) / "detection/config.pbtxt").read_bytes() == config
    assert found(serving) == (was if moment != "switch" else LEFT + RIGHT - was)
    assert run(serving, model, "--images", images) == 0
    assert found(serving) != was
    assert not list(repository_of(serving).glob("*/staging-*"))
    assert len([m for m in loaded(serving) if m.startswith("detector")]) == 1


def test_hanging_model(
    serving: TritonServer,
    models: dict[str, Path],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("local_server._healer._UNLOADING", 1.0)
    monkeypatch.setattr("promotion.switch._UNLOAD", 1.0)
    was, before = found(serving), files(repository_of(serving))
    load = Load(serving, in_flight=2)
    try:
        options = ["--images", images, "--no-local", "--smoke-timeout", 2]
        status = run(serving, models["hangs"], *options)
    finally:
        answers = load.stop()
    assert status == 1
    assert "smoke inference: an image of noise: " in capsys.readouterr().err
    assert {(a.error, a.what[0]) for a in answers} == {(None, was)}
    assert files(repository_of(serving)) == before
    # Its processes would go on for hours.
    wait_for(lambda: set(serving.stub_pids().values()) <= loaded(serving))
    assert serving.health()["restarts"] == 0


def test_a_server_that_polls_is_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from local_server import _process

    repository = make_repository(tmp_path / "models", models["left"])
    arguments = _process.server_arguments
    poll = ["--model-control-mode=poll", "--repository-poll-secs=1"]

    def polling(**options: object) -> list[str]:
        options["open_to_clients"] = {"model-repository": True}
        given = arguments(**options)  # type: ignore[arg-type]
        explicit = ("--model-control-mode", "--load-model")
        return [a for a in given if not a.startswith(explicit)] + poll

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("local_server._run.server_arguments", polling)
        with on_any_ports(repository, supervise=False) as server:
            assert run(server, models["right"], "--no-evaluate") == 1
    assert "--model-control-mode=explicit" in capsys.readouterr().err
    assert not (repository / "detector_v2").exists()


def test_the_control_file_goes_with_the_server(models: dict[str, Path], tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "models", models["left"])
    with on_any_ports(repository, supervise=False) as server:
        control = find_control(server.grpc_url)
        assert control is not None
        (file,) = Path(tempfile.gettempdir()).glob(f"{server.prefix}-*/control.json")
        assert file.stat().st_mode & 0o777 == 0o600
        connection = Connection("127.0.0.1", control.http_port, control.secret)
        assert connection.models()["detection"] == "READY"
        url = server.grpc_url
    assert not file.exists()
    assert find_control(url) is None
