"""The parts of the launcher that need no Triton."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from local_server import PortBusyError, ServerError, _guardian, _triton
from local_server._asker import Asker
from local_server._control import Control, find_control, write_control
from local_server._generations import CANDIDATE_OF, unused_models
from local_server._http import Connection, Statistics, TritonError
from local_server._log import Log, failure, unavailable_models
from local_server._ports import DEFAULT_PORTS, choose_ports, is_free
from local_server._probe import Probe, png
from local_server._state import ServerState
from local_server._watch import Watch, is_stopped

HOST = "127.0.0.1"


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as held:
        yield held.getsockname()[1]


class TestPorts:
    def test_any(self) -> None:
        ports = choose_ports(HOST, dict.fromkeys(DEFAULT_PORTS, 0))
        numbers = {ports.http, ports.grpc, ports.metrics, ports.health}
        assert len(numbers) == 4
        assert all(is_free(HOST, port) for port in numbers)
        assert ports.moved == {}

    def test_defaults_move_when_busy(self) -> None:
        held = [
            socket.create_server((HOST, port))
            for port in DEFAULT_PORTS.values()
            if is_free(HOST, port)
        ]
        try:
            ports = choose_ports(HOST, {})
        finally:
            for one in held:
                one.close()
        assert ports.moved == DEFAULT_PORTS
        assert ports.http not in DEFAULT_PORTS.values()

    def test_asked_for_and_busy(self, busy_port: int) -> None:
        with pytest.raises(PortBusyError, match=rf"port {busy_port} \(grpc\) is taken"):
            choose_ports(HOST, {"grpc": busy_port})

    def test_asked_for_twice(self, busy_port: int) -> None:
        with pytest.raises(PortBusyError, match="more than once"):
            choose_ports(HOST, {"http": busy_port, "grpc": busy_port})

    def test_a_default_asked_for_elsewhere(self) -> None:
        if not is_free(HOST, 8000):
            pytest.skip("port 8000 is taken")
        ports = choose_ports(HOST, {"grpc": 8000, "metrics": 0, "health": 0})
        assert ports.grpc == 8000
        assert ports.moved["http"] == 8000

    def test_foreign_address(self) -> None:
        with pytest.raises(ServerError, match=r"192\.0\.2\.1"):
            choose_ports("192.0.2.1", dict.fromkeys(DEFAULT_PORTS, 0))

    def test_taken_on_all_addresses(self) -> None:
        with socket.create_server(("0.0.0.0", 0)) as held:
            assert not is_free(HOST, held.getsockname()[1])


class TestTriton:
    def test_container_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "opt" / "bin" / "tritonserver"
        program.parent.mkdir(parents=True)
        program.touch(0o755)
        for name in ("python", "onnxruntime", "tensorrt"):
            (tmp_path / "opt" / "backends" / name).mkdir(parents=True)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        triton = _triton.find_triton()
        assert triton.executable == program
        assert triton.environment["PATH"].startswith(str(Path(sys.executable).parent))
        assert "LD_LIBRARY_PATH" not in triton.environment
        folder = tmp_path / "backends"
        folder.mkdir()
        _triton.link_backends(triton, folder)
        targets = {link.name: link.resolve() for link in folder.iterdir()}
        # The container's own ONNX Runtime, not our stand-in.
        assert targets["onnxruntime"] == tmp_path / "opt" / "backends" / "onnxruntime"
        assert targets["tensorrt"] == tmp_path / "opt" / "backends" / "tensorrt"
        assert (targets["preprocess_backend"] / "model.py").is_file()

    def test_wheel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if importlib.util.find_spec("pytriton") is None:
            pytest.skip("nvidia-pytriton is not installed")
        monkeypatch.setattr("shutil.which", lambda _: None)
        triton = _triton.find_triton()
        assert triton.executable.is_file()
        assert "nvidia_pytriton.libs" in triton.environment["LD_LIBRARY_PATH"]
        _triton.link_backends(triton, tmp_path)
        assert (tmp_path / "python" / "libtriton_python.so").is_file()
        assert os.access(tmp_path / "python" / "triton_python_backend_stub", os.X_OK)
        assert (tmp_path / "onnxruntime" / "model.py").is_file()
        assert (tmp_path / "preprocess_backend" / "model.py").is_file()

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda _: None)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(ServerError, match="nvidia-pytriton"):
            _triton.find_triton()

    def test_python_without_stub(self, tmp_path: Path) -> None:
        for version in ("3.9", "3.10", "3.4"):
            (tmp_path / version).mkdir()
        (tmp_path / "3.9" / "triton_python_backend_stub").touch()
        (tmp_path / "3.10" / "triton_python_backend_stub").touch()
        with pytest.raises(ServerError, match=r"use one of 3\.9, 3\.10$"):
            _triton._stub(tmp_path)

    def test_python_without_shared_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sysconfig.get_config_var", lambda _: "/nowhere")
        monkeypatch.setattr("sys.base_prefix", "/nowhere")
        monkeypatch.setattr("ctypes.util.find_library", lambda _: None)
        with pytest.raises(ServerError, match=r"install libpython3\.\d+"):
            _triton._shared_python()


def parse(request: tuple[bytes, dict[str, str]]) -> tuple[dict[str, Any], bytes]:
    body, headers = request
    size = int(headers["Inference-Header-Content-Length"])
    return json.loads(body[:size]), body[size:]


class TestProbe:
    def test_image(self) -> None:
        with Image.open(BytesIO(png(0x3366CC))) as image:
            assert image.size == (8, 8)
            assert image.convert("RGB").getpixel((3, 3)) == (0x33, 0x66, 0xCC)

    def test_image_input_varies(self) -> None:
        probe = Probe(
            {
                "name": "m",
                "max_batch_size": 8,
                "input": [
                    {"name": "IMAGE", "data_type": "TYPE_STRING", "dims": ["1"]},
                    {"name": "T", "data_type": "TYPE_FP32", "dims": ["1"], "optional": True},
                ],
                "output": [
                    {"name": "big", "data_type": "TYPE_FP32", "dims": ["300", "4"]},
                    {"name": "small", "data_type": "TYPE_INT32", "dims": ["1"]},
                ],
            }
        )
        header, data = parse(probe.request())
        assert [(one["name"], one["datatype"], one["shape"]) for one in header["inputs"]] == [
            ("IMAGE", "BYTES", [1, 1])
        ]
        assert [one["name"] for one in header["outputs"]] == ["small"]
        size = struct.unpack("<I", data[:4])[0]
        assert size == len(data) - 4
        Image.open(BytesIO(data[4:])).verify()
        assert parse(probe.request())[1] != data

    @pytest.mark.parametrize(
        ("kind", "dims", "batch", "shape", "size"),
        [
            ("FP32", ["300", "6"], 16, [1, 300, 6], 7200),
            ("UINT8", ["3", "-1", "-1"], 0, [3, 1, 1], 3),
            ("INT64", ["2"], 0, [2], 16),
            ("BOOL", [], 4, [1, 1], 1),
        ],
    )
    def test_numbers_are_zeros(
        self, kind: str, dims: list[str], batch: int, shape: list[int], size: int
    ) -> None:
        tensor = {"name": "x", "data_type": f"TYPE_{kind}", "dims": dims}
        header, data = parse(
            Probe({"name": "m", "max_batch_size": batch, "input": [tensor]}).request()
        )
        assert header["inputs"][0]["shape"] == shape
        assert header["inputs"][0]["datatype"] == kind
        assert data == bytes(size)

    def test_other_strings_are_empty(self) -> None:
        tensor = {"name": "TEXT", "data_type": "TYPE_STRING", "dims": ["2"]}
        assert parse(Probe({"name": "m", "input": [tensor]}).request())[1] == bytes(8)

    def test_parts_of_an_ensemble(self) -> None:
        steps = {"step": [{"model_name": "a"}, {"model_name": "b"}]}
        assert Probe({"name": "e", "ensemble_scheduling": steps}).parts == ["a", "b"]
        assert Probe({"name": "m"}).parts == []


class FakeModel:
    """In place of a connection: a model that counts, and fails as it is told."""

    def __init__(self) -> None:
        self.statistics_now = Statistics(0, 0, 0)
        self.asked = 0
        self.error: Exception | None = None

    def statistics(self, model: str) -> Statistics:
        assert model == "m"
        return self.statistics_now

    def request(self, *_: object, **__: object) -> bytes:
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.others(1, 0)
        return b""

    def others(self, answered: int, failed: int) -> None:
        before = self.statistics_now
        self.statistics_now = Statistics(
            before.answered + answered, before.failed + failed, before.duration_ns + answered * 7000
        )


class FakeHealer:
    def __init__(self) -> None:
        self.latencies: list[float] = []

    def answered(self, _: str, latency_s: float) -> None:
        self.latencies.append(latency_s)

    def instances(self) -> dict[int, str]:
        return {}

    def is_unloaded(self, _: str) -> bool:
        return False


class TestAsker:
    @pytest.fixture
    def model(self) -> FakeModel:
        return FakeModel()

    @pytest.fixture
    def ask(self, model: FakeModel) -> Callable[[], tuple[str | None, bool]]:
        run: Any = SimpleNamespace(connection=model, state=ServerState())
        healer: Any = FakeHealer()
        asker = Asker(run, healer, "m", threading.Event())
        return lambda: asker._ask(Probe({"name": "m"}))

    def test_asks_an_idle_model_every_time(
        self, model: FakeModel, ask: Callable[[], tuple[str | None, bool]]
    ) -> None:
        assert [ask() for _ in range(3)] == [(None, False)] * 3
        assert model.asked == 3

    def test_spares_a_model_that_answers_others(
        self, model: FakeModel, ask: Callable[[], tuple[str | None, bool]]
    ) -> None:
        ask()
        model.others(5, 0)
        assert ask() == (None, False)
        assert model.asked == 1
        model.others(5, 1)  # something failed: better ask
        assert ask() == (None, False)
        assert model.asked == 2
        assert ask() == (None, False)
        assert model.asked == 3

    def test_statistics_start_again(
        self, model: FakeModel, ask: Callable[[], tuple[str | None, bool]]
    ) -> None:
        model.others(100, 0)
        ask()
        model.statistics_now = Statistics(0, 0, 0)
        assert ask() == (None, False)
        assert model.asked == 2

    @pytest.mark.parametrize(
        ("error", "problem", "hangs"),
        [
            (TritonError(500, "broken"), "broken", False),
            (TritonError(400, "zeros are no good"), None, False),
            (TritonError(503, "queue full"), None, False),
            (TimeoutError(), "no answer within 4 s", True),
            (ConnectionRefusedError("refused"), "Triton does not answer: refused", False),
        ],
    )
    def test_problems(
        self,
        model: FakeModel,
        ask: Callable[[], tuple[str | None, bool]],
        error: Exception,
        problem: str | None,
        hangs: bool,
    ) -> None:
        model.error = error
        assert ask() == (problem, hangs)

    def test_a_long_queue_is_no_hang(
        self, model: FakeModel, ask: Callable[[], tuple[str | None, bool]]
    ) -> None:
        def overtaken(*_: object, **__: object) -> bytes:
            model.others(1, 0)
            raise TimeoutError

        model.request = overtaken  # type: ignore[method-assign]
        assert ask() == (None, False)


class TestModels:
    """What the models of a repository are, from Triton's index and from the record on disk."""

    @pytest.mark.parametrize(
        ("versions", "state"),
        [
            ([{"state": "READY"}], "READY"),
            ([{"state": "UNAVAILABLE", "reason": "unloaded"}], "UNLOADED"),
            ([{}], "UNLOADED"),  # in the repository, but never loaded
            ([{"state": "UNAVAILABLE", "reason": "broken"}], "UNAVAILABLE"),
            ([{"state": "READY"}, {"state": "UNAVAILABLE", "reason": "unloaded"}], "READY"),
            ([{"state": "UNAVAILABLE", "reason": "unloaded"}, {"state": "READY"}], "READY"),
            ([{"state": "UNAVAILABLE", "reason": "unloaded"}, {"state": "UNLOADING"}], "UNLOADING"),
        ],
    )
    def test_a_model_has_the_state_of_its_best_version(
        self, versions: list[dict[str, str]], state: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = [{"name": "m", "version": str(i), **v} for i, v in enumerate(versions, 1)]
        monkeypatch.setattr(Connection, "request", lambda *_, **__: json.dumps(index).encode())
        assert Connection(HOST, 1).models() == {"m": state}

    def test_unused(self, tmp_path: Path) -> None:
        def write(model: str, *steps: str) -> None:
            (tmp_path / model).mkdir(exist_ok=True)
            text = "".join(f'step {{ model_name: "{step}" }}\n' for step in steps)
            (tmp_path / model / "config.pbtxt").write_text(text)

        write("detection", "a", "b_v2")
        for model in ("a", "b", "b_v2", "other"):
            write(model)
        assert unused_models(tmp_path) == frozenset()
        record = tmp_path / "detection" / "generations.json"
        record.write_text(json.dumps({"models": ["a", "b", "b_v2", "b_v3", "candidate"]}))
        write("candidate", "a", "b_v3")  # uses what nobody is served
        config = tmp_path / "candidate" / "config.pbtxt"
        config.write_text(config.read_text() + f'parameters {{ key: "{CANDIDATE_OF}" }}\n')
        assert unused_models(tmp_path) == {"b", "b_v3", "candidate"}
        write("second", "b")
        assert unused_models(tmp_path) == {"b_v3", "candidate"}
        record.write_text("damaged")
        assert unused_models(tmp_path) == frozenset()


class TestControl:
    @pytest.fixture
    def control(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Control:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        control = Control(
            launcher=os.getpid(),
            host="0.0.0.0",
            http_port=8100,
            grpc_port=8101,
            model_repository="/models",
            header="name",
            secret="secret",
        )
        folder = Path(tempfile.mkdtemp(prefix="detserve-1-"))
        write_control(folder, control)
        return control

    def test_found_by_its_address(self, control: Control) -> None:
        for url in ("grpc://127.0.0.1:8101", "http://localhost:8100", "localhost:8101"):
            assert find_control(url) == control
        for url in ("grpc://127.0.0.1:8100", "http://127.0.0.1:8101", "grpc://127.0.0.1", "x"):
            assert find_control(url) is None

    def test_not_for_another_machine(self, control: Control) -> None:
        assert find_control("grpc://192.0.2.1:8101") is None
        assert find_control(f"grpc://no-such-host.invalid:{control.grpc_port}") is None

    def test_only_its_user_can_read_it(self, control: Control, tmp_path: Path) -> None:
        (file,) = tmp_path.glob("*/control.json")
        assert file.stat().st_mode & 0o777 == 0o600
        file.parent.chmod(0o755)  # somebody else may have put the file there
        assert Control.read(file) is None
        file.parent.chmod(0o700)
        assert Control.read(file) == control

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"launcher": 0'])
    def test_damaged(self, control: Control, tmp_path: Path, text: str) -> None:
        (file,) = tmp_path.glob("*/control.json")
        file.write_text(text)
        assert find_control(f"grpc://127.0.0.1:{control.grpc_port}") is None

    def test_of_a_launcher_that_has_ended(self, control: Control, tmp_path: Path) -> None:
        (file,) = tmp_path.glob("*/control.json")
        with subprocess.Popen(["true"]) as ended:
            pass
        file.write_text(json.dumps({**json.loads(file.read_text()), "launcher": ended.pid}))
        assert find_control(f"grpc://127.0.0.1:{control.grpc_port}") is None


TABLE = """\
+----------+---------+----------------------------------------+
| Model    | Version | Status                                 |
+----------+---------+----------------------------------------+
| detector | 1       | UNAVAILABLE: Internal: EngineError: no |
|          |         | model file /r/detector/1/model.onnx    |
| other    | 1       | READY                                  |
| third    | -       | UNAVAILABLE: broken                    |
+----------+---------+----------------------------------------+
"""


class TestLog:
    def test_unavailable_models(self) -> None:
        assert unavailable_models(TABLE.splitlines()) == {
            "detector": "Internal: EngineError: no\nmodel file /r/detector/1/model.onnx",
            "third": "broken",
        }

    def test_failure_names_the_remedy(self) -> None:
        text = failure(TABLE.splitlines())
        assert "'detector' does not load" in text
        assert "make model" in text
        assert "'third' does not load: broken" in text

    def test_failure_without_a_table(self) -> None:
        text = failure(
            [
                'I1123 09:00:00.000000 1 a.cc:1] "fine"',
                'E1123 09:00:00.000000 1 server.cc:241] "CudaDriverHelper has not been set up."',
                'E1123 09:00:00.000000 1 b.cc:2] "Poll failed for model directory"',
                "error: creating server: Internal - failed to load all models",
            ]
        )
        assert text == "Poll failed for model directory"
        assert failure([]) == "it said nothing"

    def test_shows_what_concerns_a_user(self) -> None:
        shown: list[str] = []
        log = Log(shown.append, None, verbose=False)
        wanted = [
            'W1123 09:00:00.000000 1 a.cc:1] "a warning"',
            "and its second line",
            "what a model prints",
        ]
        for line in (
            'I1123 09:00:00.000000 1 a.cc:1] "information"',
            "+---+",
            "| x |",
            "",
            wanted[0],
            wanted[1],
            'W1123 09:00:00.000000 1 p.cc:2] "Unable to allocate pinned system memory"',
            "Error: Failed to initialize NVML",
            wanted[2],
        ):
            log.add(line)
        assert shown == wanted

    @pytest.mark.parametrize("show", [True, False])
    def test_holds_lines_while_triton_starts(self, show: bool) -> None:
        shown: list[str] = []
        log = Log(shown.append, None, verbose=False)
        log.hold()
        log.add("printed")
        assert shown == []
        log.release(show=show)
        log.add("later")
        assert shown == (["printed", "later"] if show else ["later"])


class TestState:
    def test_tells_what_is_wrong_and_since_when(self) -> None:
        state = ServerState()
        assert state.snapshot()["status"] == "failing"
        state.answered("a", 0.0125)
        state.answered("b", 0.001)
        assert state.snapshot()["status"] == "failing"  # until told that the server is up
        state.server_up()
        assert state.snapshot()["status"] == "ok"
        assert state.snapshot()["models"]["a"]["latency_ms"] == 12.5
        state.failing("a", "gone", "reloading it")
        snapshot = state.snapshot()
        assert snapshot["status"] == "failing"
        assert snapshot["models"]["a"]["problem"] == "gone"
        assert snapshot["models"]["a"]["action"] == "reloading it"
        since = snapshot["models"]["a"]["since"]
        state.failing("a", "still gone")
        assert state.snapshot()["models"]["a"]["since"] == since
        state.reloaded("a")
        state.answered("a", 0.01)
        snapshot = state.snapshot()
        assert snapshot["status"] == "ok"
        assert snapshot["models"]["a"]["reloads"] == 1
        assert "problem" not in snapshot["models"]["a"]
        state.server_down("Triton has died")
        assert {model["status"] for model in state.snapshot()["models"].values()} == {"failing"}


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_supervisor_that_fails_is_no_healthy_server() -> None:
    state = ServerState()
    state.server_up()
    state.guard(lambda: None)
    assert state.snapshot()["status"] == "ok"

    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        state.guard(fail)
    assert state.snapshot()["status"] != "ok"
    assert "supervisor" in state.snapshot()["problem"]


class TestWatch:
    def test_end(self, sleeper: subprocess.Popen[bytes]) -> None:
        watch = Watch()
        assert watch.watch({sleeper.pid}) == set()
        assert watch.wait(0) == (set(), set())
        sleeper.kill()
        assert watch.wait(10) == ({sleeper.pid}, set())
        assert watch.wait(0) == (set(), set())
        sleeper.wait()
        assert watch.watch({sleeper.pid}) == {sleeper.pid}
        watch.close()

    def test_where_there_are_no_pidfds(
        self, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_pid: int) -> int:
            raise OSError(errno.ENOSYS, "not implemented")

        monkeypatch.setattr(os, "pidfd_open", refuse)  # stands for an old kernel
        watch = Watch()
        assert watch.watch({sleeper.pid}) == set()
        assert watch.wait(0) == (set(), set())
        sleeper.kill()
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        assert watch.watch({sleeper.pid}) == set()
        assert watch.wait(0) == ({sleeper.pid}, set())
        watch.close()

    def test_stop(self, sleeper: subprocess.Popen[bytes]) -> None:
        watch = Watch(patience=0.1)
        watch.watch({sleeper.pid})
        os.kill(sleeper.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not watch.wait(0.05)[1]:
            assert time.monotonic() < deadline
        assert is_stopped(sleeper.pid)
        watch.close()


def ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigIgn:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


class TestGuardian:
    """The process that cleans up, with a `sleep` in the part of Triton."""

    @pytest.fixture
    def scene(self, tmp_path: Path) -> Iterator[tuple[str, Path, Path, subprocess.Popen[bytes]]]:
        prefix = f"detserve-test-{os.getpid()}-"
        folder, segment = tmp_path / "folder", Path("/dev/shm") / f"{prefix}segment"
        (folder / "backends").mkdir(parents=True)
        segment.touch()
        script = f"exec -a tritonserver {sys.executable} -c 'import time; time.sleep(600)' {prefix}"
        with subprocess.Popen(["bash", "-c", script]) as triton:
            deadline = time.monotonic() + 10
            while triton.pid not in dict(_guardian.processes(prefix)):  # until it is what it says
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield prefix, folder, segment, triton
            triton.kill()
        segment.unlink(missing_ok=True)

    def start(self, launcher: int, folder: Path, prefix: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", _guardian.__file__]
        return subprocess.Popen(
            [*command, str(launcher), str(folder), prefix], stdin=subprocess.PIPE
        )

    def test_cleans_up_when_the_pipe_ends(
        self, scene: tuple[str, Path, Path, subprocess.Popen[bytes]], tmp_path: Path
    ) -> None:
        prefix, folder, segment, triton = scene
        (empty := tmp_path / "empty").mkdir()
        (full := tmp_path / "full").mkdir()
        (full / "file").touch()
        with self.start(os.getpid(), folder, prefix) as guardian:
            while not ignores(guardian.pid, signal.SIGTERM):  # it has just been started
                assert guardian.poll() is None
                time.sleep(0.02)
            for number in (signal.SIGINT, signal.SIGTERM):
                guardian.send_signal(number)
                time.sleep(0.2)
            assert guardian.poll() is None
            assert triton.poll() is None
            assert guardian.stdin is not None
            guardian.stdin.write(f"{empty}\n{full}\n".encode())
            guardian.stdin.close()
            assert guardian.wait(20) == 0
        assert triton.wait(10) == -signal.SIGKILL
        assert not folder.exists()
        assert not segment.exists()
        assert not empty.exists()
        assert full.exists()

    def test_cleans_up_when_the_launcher_is_not_its_parent(
        self, scene: tuple[str, Path, Path, subprocess.Popen[bytes]]
    ) -> None:
        """As after the launcher's death, with the pipe still held by a fork of it."""
        prefix, folder, _, triton = scene
        with self.start(1, folder, prefix) as guardian:
            assert guardian.wait(20) == 0
        assert triton.wait(10) == -signal.SIGKILL
        assert not folder.exists()

    def test_spares_other_programs(
        self, scene: tuple[str, Path, Path, subprocess.Popen[bytes]]
    ) -> None:
        prefix, _, _, triton = scene
        with subprocess.Popen(["sleep", "600"]) as other:
            try:
                assert triton.pid in dict(_guardian.processes(prefix))
                assert other.pid not in dict(_guardian.processes(""))
            finally:
                other.kill()
