"""The parts of a promotion that need no server."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

import promote
from assembly import Serving, install
from contract import DetectorInfo
from detection_client import DetectionClientError
from detserve.detections import Detections
from detserve.repository import DetectorRepository, RepositoryError, read_model_config
from evaluation import Evaluation
from local_server import unused_models
from promotion import GateError, Limits, PromotionError
from promotion.bundle import build
from promotion.exam import Exam, Images
from promotion.flow import Outcome, _end
from promotion.gates import check_accuracy, nonsense
from promotion.generations import Generations
from promotion.model_server import ModelServer
from promotion.stages import Stages
from promotion.switch import Switch, repository_of
from tests.models import write_detector

TEMPLATE = Path(__file__).resolve().parents[2] / "model_repository"
ROWS = np.zeros((300, 6), np.float32)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    ignored = shutil.ignore_patterns("__pycache__", "model.onnx", "generations.json")
    shutil.copytree(TEMPLATE, folder, ignore=ignored)
    write_detector(folder / "detector/1/model.onnx", 300, ROWS)
    return folder


@pytest.fixture
def generations(repository: Path) -> Generations:
    return Generations(repository, "detection")


def add(generations: Generations, model: Path, number: int = 0, engine: str | None = None) -> int:
    """Build and stage a generation."""
    number = number or generations.next_number(served=1)
    with generations.staging() as folder:
        bundle = build(generations, model, number, folder, engine=engine)
        generations.stage(number, bundle.config, bundle.made, folder, {})
    return number


def promote_to(generations: Generations, model: Path) -> int:
    number = add(generations, model)
    generations.show_candidate(number)
    generations.make_version(number)
    generations.commit(number)
    generations.hide_candidate()
    generations.clear_up()
    return number


def files(repository: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(repository)): path.read_bytes() if path.is_file() else b""
        for path in repository.rglob("*")
    }


def steps(repository: Path) -> list[str]:
    """What a server that starts would serve; fails if a model of it is not whole."""
    current = DetectorRepository(repository, "detection")
    assert current.model_file().is_file()
    return [config.name for config in current.configs[:3]]


def at(repository: Path) -> Generations:
    return Generations(repository, "detection")


class CrashError(BaseException):
    """The end of the process, so to say."""


def crash_after(calls: int, work: Callable[[], object]) -> bool:
    """Do something that crashes at its n-th change of the disk; whether it came to its end."""
    count = itertools.count()

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*arguments: object, **options: object) -> object:
            if next(count) >= calls:
                raise CrashError
            return call(*arguments, **options)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "unlink", "mkdir", "write_text", "write_bytes", "rmdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        with contextlib.suppress(CrashError):
            work()
            return True
    return False


class TestGenerations:
    def test_a_fitting_detector_shares_the_rest(
        self, generations: Generations, tmp_path: Path
    ) -> None:
        model = write_detector(tmp_path / "new.onnx", 300, ROWS + 1)
        number = promote_to(generations, model)
        assert number == 2
        assert steps(generations.repository) == ["preprocess", "detector_v2", "postprocess"]
        served = read_model_config(generations.repository / "detection")
        assert list(served.version_policy.specific.versions) == [2]
        assert served.parameters["generation"].string_value == "2"
        assert (generations.repository / "detection/2").is_dir()
        assert (
            generations.repository / "detector_v2/1/model.onnx"
        ).read_bytes() == model.read_bytes()
        assert (generations.repository / "detector/1/model.onnx").is_file()
        assert unused_models(generations.repository) == {"detector", "detection_candidate"}

    def test_another_input_size_has_preprocessing_of_its_own(
        self, generations: Generations, tmp_path: Path
    ) -> None:
        promote_to(generations, write_detector(tmp_path / "new.onnx", 320, ROWS))
        assert steps(generations.repository)[:2] == ["preprocess_v2", "detector_v2"]
        settings = DetectorRepository(generations.repository).preprocess_settings()
        assert (settings.width, settings.height) == (320, 320)

    @pytest.mark.parametrize(("tuned", "served"), [(None, 0.65), (0.4, 0.4)])
    def test_overlaps_are_suppressed_as_the_file_says_unless_that_was_tuned(
        self, generations: Generations, tmp_path: Path, tuned: float | None, served: float
    ) -> None:
        config = generations.repository / "postprocess/config.pbtxt"
        if tuned is not None:
            text = config.read_text()
            assert '"0.5"' in text
            config.write_text(text.replace('"0.5"', f'"{tuned}"'))
        path = write_detector(tmp_path / "new.onnx", 300, ROWS)
        model = onnx.load(path)
        replace(DetectorInfo.of(model), iou_threshold=0.65).write_to(model)
        onnx.save(model, path)
        promote_to(generations, path)
        settings = DetectorRepository(generations.repository).selection_settings()
        assert settings.iou_threshold == pytest.approx(served)
        assert ("postprocess_v2" in steps(generations.repository)) == (tuned is None)

    def test_names_do_not_pile_up(self, generations: Generations, tmp_path: Path) -> None:
        for number in range(2, 6):
            model = write_detector(tmp_path / "new.onnx", 300 + 20 * (number % 2), ROWS)
            assert promote_to(generations, model) == number
            generations = Generations(generations.repository, "detection")
            assert generations.current == number
            assert generations.previous == number - 1
        folders = {path.name for path in generations.repository.iterdir()}
        assert {name for name in folders if "detector" in name} == {
            "detector", "detector_v4", "detector_v5",
        }  # fmt: skip
        assert not (generations.repository / "detection/3").exists()

    def test_rolling_back_keeps_the_first_configuration_with_its_comments(
        self, generations: Generations, tmp_path: Path
    ) -> None:
        path = generations.repository / "detection/config.pbtxt"
        original = path.read_text()
        promote_to(generations, write_detector(tmp_path / "new.onnx", 320, ROWS))
        again = Generations(generations.repository, "detection")
        assert again.previous == 1
        again.commit(1)
        assert path.read_text().startswith(original.rstrip())
        config = text_format.Parse(path.read_text(), type(read_model_config(path.parent))())
        assert list(config.version_policy.specific.versions) == [1]
        assert steps(generations.repository) == ["preprocess", "detector", "postprocess"]
        assert Generations(generations.repository, "detection").current == 1
        # Answers of generation 2 may be in a response cache for as long as the server runs.
        assert Generations(generations.repository, "detection").next_number(served=1) == 3

    def test_a_discarded_candidate_leaves_nothing(
        self, generations: Generations, tmp_path: Path
    ) -> None:
        before = files(generations.repository)
        number = add(generations, write_detector(tmp_path / "new.onnx", 320, ROWS))
        generations.show_candidate(number)
        assert unused_models(generations.repository) == {
            "detector_v2", "preprocess_v2", "detection_candidate",
        }  # fmt: skip
        generations.clear_up()
        assert files(generations.repository) == before

    def test_a_number_that_was_served_is_not_used_again(
        self, generations: Generations, tmp_path: Path
    ) -> None:
        model = write_detector(tmp_path / "new.onnx", 300, ROWS)
        number = add(generations, model)
        generations.make_version(number)
        generations.clear_up()
        again = Generations(generations.repository, "detection")
        assert again.current == 1
        assert again.next_number(served=1) == 3
        assert again.next_number(served=7) == 8

    def test_a_crash_at_any_moment_leaves_the_old_or_the_new(
        self, repository: Path, tmp_path: Path
    ) -> None:
        """Every call that changes the repository is a moment; later promotions clear up."""
        model = write_detector(tmp_path / "new.onnx", 320, ROWS)
        old, new = ["preprocess", "detector"], ["preprocess_v2", "detector_v2"]
        outcomes = []
        for calls in itertools.count():
            crashed = tmp_path / str(calls)
            shutil.copytree(repository, crashed)
            same = at(crashed)
            ended = crash_after(calls, partial(promote_to, same, model))
            served = steps(crashed)[:2]
            outcomes.append(served)
            assert served in (old, new)
            if calls % 2:  # an interruption, after which the process clears up
                assert same.current == at(crashed).current
                same.clear_up()
                assert steps(crashed)[:2] == served
            unused = unused_models(crashed)
            loaded = {path.name for path in crashed.iterdir()} - unused
            assert loaded == {"detection", "postprocess", *served}
            again = at(crashed)
            assert again.current == (1 if served == old else 2)
            again.clear_up()
            promote_to(again, model)
            assert steps(crashed)[1] == f"detector_v{again.current}"
            if ended:
                break
        assert outcomes == sorted(outcomes)  # first the old, then the new
        assert outcomes.count(old) > 10
        assert outcomes.count(new) > 3

    def test_interrupted_right_after_the_configuration_was_replaced(
        self, generations: Generations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        number = add(generations, write_detector(tmp_path / "new.onnx", 320, ROWS))
        original = Path.replace

        def interrupted(path: Path, target: Path) -> Path:
            done = original(path, target)
            if target.name == "config.pbtxt":
                raise KeyboardInterrupt
            return done

        monkeypatch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generations.commit(number)
        assert generations.current == number
        generations.clear_up()
        assert steps(generations.repository)[:2] == ["preprocess_v2", "detector_v2"]

    def test_an_edit_keeps_the_number_and_the_way_back(
        self, generations: Generations, tmp_path: Path
    ) -> None:
        promote_to(generations, write_detector(tmp_path / "2.onnx", 300, ROWS + 1))
        promote_to(generations, write_detector(tmp_path / "3.onnx", 300, ROWS + 2))
        path = generations.repository / "detection/config.pbtxt"
        path.write_text(f"# mine\n{path.read_text()}")
        edited = at(generations.repository)
        assert (edited.current, edited.previous) == (3, 2)
        edited.clear_up()
        assert (edited.repository / "detector_v2").is_dir()
        edited.commit(2)
        path.write_text(f"# mine again\n{path.read_text()}")
        assert at(generations.repository).current == 2
        assert at(generations.repository).next_number(served=1) == 4

    def test_an_edit_of_a_configuration_without_a_number(
        self, generations: Generations, tmp_path: Path
    ) -> None:
        """A promotion ended between the switch and the commit, then somebody edited."""
        number = add(generations, write_detector(tmp_path / "2.onnx", 300, ROWS + 1))
        generations.make_version(number)
        path = generations.repository / "detection/config.pbtxt"
        path.write_text(f"# mine\n{path.read_text()}")
        edited = at(generations.repository)
        assert edited.current not in (1, number)
        assert edited.models(edited.current)[1] == "detector"

    def test_an_ensemble_of_the_candidates_name_is_left_alone(
        self, generations: Generations, tmp_path: Path
    ) -> None:
        number = add(generations, write_detector(tmp_path / "2.onnx", 300, ROWS + 1))
        mine = generations.repository / "detection_candidate"
        shutil.copytree(generations.repository / "detection", mine)
        config = mine / "config.pbtxt"
        config.write_text(config.read_text().replace('"detection"', '"detection_candidate"'))
        assert unused_models(generations.repository) == {"detector_v2"}
        before = files(mine)
        with (
            pytest.raises(PromotionError, match="detection_candidate is in the way"),
            Generations.exclusive(generations.repository, "detection"),
        ):
            pass
        with pytest.raises(OSError, match="detection_candidate"):
            generations.show_candidate(number)
        generations.clear_up()
        assert files(mine) == before

    def test_two_at_once_are_refused(self, repository: Path) -> None:
        with (
            Generations.exclusive(repository, "detection"),
            pytest.raises(PromotionError, match="another promotion of detection"),
            Generations.exclusive(repository, "detection"),
        ):
            pass

    def test_a_damaged_record_is_said(self, repository: Path) -> None:
        (repository / "detection/generations.json").write_text('{"generations": {"1": 2}}')
        with pytest.raises(PromotionError, match=r"generations\.json is damaged"):
            Generations(repository, "detection")
        assert unused_models(repository) == frozenset()

    def test_what_is_in_the_way_stays(self, generations: Generations, tmp_path: Path) -> None:
        mine = generations.repository / "detection_candidate"
        mine.mkdir()
        with pytest.raises(PromotionError, match="detection_candidate is in the way"):
            add(generations, write_detector(tmp_path / "new.onnx", 300, ROWS))
        assert mine.is_dir()

    def test_what_cannot_be_served_is_refused(
        self, generations: Generations, tmp_path: Path
    ) -> None:
        before = files(generations.repository)
        (tmp_path / "no.onnx").write_bytes(b"nothing")
        with pytest.raises(RepositoryError, match="cannot be read"):
            add(generations, tmp_path / "no.onnx")
        model = write_detector(tmp_path / "new.onnx", 300, ROWS)
        with pytest.raises(RepositoryError, match="ONNX model"):
            add(generations, model, engine="tensorrt")
        assert files(generations.repository) == before

    def test_instances_are_as_asked_for(self, generations: Generations, tmp_path: Path) -> None:
        model = write_detector(tmp_path / "new.onnx", 300, ROWS)
        with generations.staging() as folder:
            build(generations, model, 2, folder, serving=Serving(instances=5))
            assert read_model_config(folder / "detector_v2").instance_group[0].count == 5


@dataclass
class Server:
    """What a Triton has loaded, so to say."""

    repository: Path
    loaded: dict[str, ModelConfig] = field(default_factory=dict)
    unloaded: list[str] = field(default_factory=list)

    def parameters(self, model: str) -> dict[str, str]:
        parameters = self.loaded[model].parameters
        return {name: parameters[name].string_value for name in parameters}

    def load(self, model: str, config: ModelConfig | None = None) -> None:
        self.loaded[model] = config or read_model_config(self.repository / model)

    def is_loaded(self, model: str) -> bool:
        return model in self.loaded

    def load_if_needed(self, model: str) -> None:
        if model not in self.loaded:
            self.load(model)

    def unload(self, model: str, _timeout: float) -> bool:
        del self.loaded[model]
        self.unloaded.append(model)
        return True

    def restart(self) -> None:
        """Load what a server that starts loads."""
        self.loaded.clear()
        unused = unused_models(self.repository)
        for folder in self.repository.iterdir():
            if folder.is_dir() and folder.name not in unused:
                self.load(folder.name)


class TestSwitch:
    @pytest.fixture
    def server(self, repository: Path) -> Server:
        server = Server(repository)
        server.restart()
        return server

    @pytest.fixture
    def switch(self, server: Server, generations: Generations) -> Switch:
        return Switch(server, generations, Stages())  # type: ignore[arg-type]

    @pytest.fixture
    def number(self, generations: Generations, switch: Switch, tmp_path: Path) -> int:
        number = add(generations, write_detector(tmp_path / "new.onnx", 320, ROWS))
        switch.try_out(number)
        return number

    @pytest.fixture
    def _terminable(self) -> Iterator[None]:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, interrupt)
        yield
        signal.signal(signal.SIGTERM, before)

    @pytest.mark.parametrize("moment", ["before the check", "at the commit"])
    def test_a_server_that_starts_anew(
        self,
        server: Server,
        generations: Generations,
        switch: Switch,
        number: int,
        moment: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def check() -> None:
            assert switch.served() == number
            if moment == "before the check":
                server.restart()

        config = generations.repository / "detection/config.pbtxt"
        original, commit = config.read_bytes(), generations.commit

        def commit_after_restart(number: int) -> None:
            if moment == "at the commit" and not server.unloaded:
                server.restart()
                server.unloaded.append("")
            commit(number)

        monkeypatch.setattr(generations, "commit", commit_after_restart)
        with pytest.raises(PromotionError, match="started anew meanwhile, without generation 2"):
            switch.to(number, check)
        outcome = Outcome()
        _end(generations, switch, outcome, "discard")
        assert outcome.serving == 1
        assert (config.read_bytes() == original) == (moment == "before the check")
        assert switch.served() in (1, None)
        assert steps(generations.repository)[:2] == ["preprocess", "detector"]
        assert {"preprocess", "detector", "postprocess"} <= server.loaded.keys()
        assert not (generations.repository / "detector_v2").exists()

    def test_where_the_way_back_fails_nothing_is_unloaded(
        self,
        server: Server,
        generations: Generations,
        switch: Switch,
        number: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def check() -> None:
            monkeypatch.setattr("promotion.switch._RETURN", 0.0)
            monkeypatch.setattr(server, "load", refuse)
            raise GateError("gate", "no good")

        def refuse(*_: object) -> None:
            raise PromotionError("does not load")

        with pytest.raises(PromotionError, match="the way back to generation 1 failed as well"):
            switch.to(number, check)
        outcome = Outcome()
        _end(generations, switch, outcome, "discard")
        assert server.unloaded == []
        assert (generations.repository / "detector_v2/1/model.onnx").is_file()
        assert (outcome.serving, outcome.models[1]) == (2, "detector_v2")

    @pytest.mark.usefixtures("_terminable")
    def test_the_way_back_is_not_interrupted(
        self,
        server: Server,
        switch: Switch,
        number: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        load = server.load

        def check() -> None:
            monkeypatch.setattr(server, "load", load_impatiently)
            raise GateError("gate", "no good")

        def load_impatiently(model: str, config: ModelConfig | None = None) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            load(model, config)

        with pytest.raises(GateError, match="no good"):
            switch.to(number, check)
        assert switch.served() == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)

    def test_a_server_that_does_not_answer_hides_no_error(
        self,
        server: Server,
        generations: Generations,
        switch: Switch,
        number: int,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def dead(*_: object) -> bool:
            raise PromotionError("it does not answer")

        assert (generations.repository / f"detector_v{number}").is_dir()
        for call in ("parameters", "is_loaded", "unload"):
            monkeypatch.setattr(server, call, dead)
        _end(generations, switch, Outcome(), "discard")
        assert "nothing was unloaded: it does not answer" in capsys.readouterr().err
        assert not (generations.repository / "detector_v2").exists()
        assert not (generations.repository / "detection_candidate").exists()

    def test_what_others_are_about_to_serve_is_left_alone(
        self, server: Server, generations: Generations, switch: Switch, tmp_path: Path
    ) -> None:
        model = write_detector(tmp_path / "cars.onnx", 300, ROWS)
        install(model, generations.repository, ensemble="cars")
        server.restart()
        cars = Generations(generations.repository, "cars")
        of_cars = Switch(server, cars, Stages())  # type: ignore[arg-type]
        number = add(cars, write_detector(tmp_path / "new.onnx", 300, ROWS + 1))
        of_cars.try_out(number)
        served = dict(server.loaded)
        assert {"cars_candidate", "cars_detector_v2"} <= served.keys()
        switch.tidy()
        assert server.loaded == served
        of_cars.unload_unused()
        assert sorted(server.unloaded) == ["cars_candidate", "cars_detector_v2"]

    def test_a_server_of_another_repository_is_left_alone(
        self, server: Server, switch: Switch
    ) -> None:
        server.loaded["detection"].parameters["generation"].string_value = "7"
        with pytest.raises(PromotionError, match="has generation 7 of detection, of which"):
            switch.tidy()
        assert switch.served() == 7


class TestModelServer:
    def test_a_server_that_hangs(self) -> None:
        began = time.monotonic()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            for scheme in ("grpc", "http"):
                with ModelServer(f"{scheme}://127.0.0.1:{port}", timeout=0.2) as server:
                    for call in (server.load, server.unload, server.parameters, server.is_loaded):
                        with pytest.raises(PromotionError):
                            call("detection")
                    with pytest.raises(PromotionError):
                        server.check_control("x", None)
        assert time.monotonic() - began < 10

    def test_what_is_being_unloaded_is_loaded_once_it_is_gone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        states, loads = ["UNLOADING", "UNLOADING", "UNLOADED"], list[str]()
        with ModelServer("grpc://127.0.0.1:1", timeout=0.2) as server:
            monkeypatch.setattr(
                server, "states", lambda: {"m": {1: states.pop(0) if states[1:] else states[0]}}
            )
            monkeypatch.setattr(server, "load", loads.append)
            server.load_if_needed("m")
            assert (states, loads) == (["UNLOADED"], ["m"])
            states[:] = ["READY"]
            server.load_if_needed("m")
            assert loads == ["m"]
            states[:] = ["UNLOADING"]
            with pytest.raises(PromotionError, match=r"m has been on its way out for 0\.2 s"):
                server.load_if_needed("m")


def evaluation(value: float, **changes: object) -> Evaluation:
    numbers = dict.fromkeys(("map50", "map75", "map_small", "map_medium", "map_large", "recall"), 0)
    fields = {"source": "x", "map": value, "per_class": (), "images": 9, "objects": 9}
    return Evaluation(**{**numbers, **fields, "detections": 1, **changes})  # type: ignore[arg-type]


class TestGates:
    @pytest.mark.parametrize(
        ("limits", "value", "reference", "message"),
        [
            (Limits(), 0.49, 0.5, None),
            (Limits(), 0.48, 0.5, r"mAP 0\.4800 is 0\.0200 under the 0\.5000 of x; at most 0\.01"),
            (Limits(max_drop=0.05), 0.46, 0.5, None),
            (Limits(max_drop=None), 0.1, 0.5, None),
            (Limits(min_map=0.3), 0.25, None, r"0\.0500 under the least allowed, 0\.3"),
        ],
    )
    def test_accuracy(
        self, limits: Limits, value: float, reference: float | None, message: str | None
    ) -> None:
        other = None if reference is None else evaluation(reference)
        if message is None:
            check_accuracy("gate", evaluation(value), other, limits)
            return
        with pytest.raises(GateError, match=message) as error:
            check_accuracy("gate", evaluation(value), other, limits)
        assert error.value.gate == "gate"

    def test_images_without_an_answer(self) -> None:
        result = evaluation(0.5, failures=(("a.jpg", "too large"), ("b.jpg", "too large")))
        with pytest.raises(GateError, match=r"2 of 9 images .* a\.jpg: too large"):
            check_accuracy("gate", result, None, Limits(max_failures=1))
        check_accuracy("gate", result, None, Limits(max_failures=2))

    @pytest.mark.parametrize(
        ("boxes", "scores", "classes", "problem"),
        [
            ([], [], [], None),
            ([[0, 0, 10, 20]], [0.5], [1], None),
            ([[0, 0, np.nan, 20]], [0.5], [1], "not finite"),
            ([[0, 0, 10, 20]], [1.5], [1], "not between 0 and 1"),
            ([[0, 0, 10, 20]] * 2, [0.5, 0.6], [1, 1], "descend"),
            ([[9, 0, 3, 20]], [0.5], [1], "end before they begin"),
            ([[0, 0, 12, 20]], [0.5], [1], "out of the image of 10 x 20"),
            ([[0, 0, 10, 20]], [0.5], [2], "no label"),
        ],
    )
    def test_nonsense(
        self,
        boxes: list[list[float]],
        scores: list[float],
        classes: list[int],
        problem: str | None,
    ) -> None:
        found = Detections(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(scores, np.float32),
            np.array(classes, np.int32),
            ("a", "b"),
        )
        said = nonsense(found, (10, 20))
        assert said is None if problem is None else said is not None and problem in said

    @pytest.mark.parametrize("labelled", [True, False])
    @pytest.mark.parametrize("allowed", [0, 1])
    def test_failures_that_are_allowed_are_so_everywhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: bool, allowed: int
    ) -> None:
        images = tmp_path / "images"
        images.mkdir()
        (tmp_path / "labels").mkdir() if labelled else None
        for number in range(6):
            pixels = np.full((40, 40, 3), number * 20, np.uint8)
            cv2.imwrite(str(images / f"{number}.png"), pixels)
            if labelled:
                (tmp_path / f"labels/{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        bad = (images / "5.png").read_bytes()  # not among those of the smoke inferences
        found = Detections(
            np.array([[10, 10, 30, 30]], np.float32),
            np.array([0.9], np.float32),
            np.array([0], np.int32),
            ("person",),
        )
        promoted: list[str] = []

        class Client(contextlib.nullcontext[None]):
            url = "grpc://x"

            def __init__(self, _url: str, model: str, **_options: object) -> None:
                super().__init__()
                self.is_new = model == "x_candidate" or bool(promoted)

            def __enter__(self) -> Client:  # type: ignore[override]
                return self

            def model_info(self) -> SimpleNamespace:
                return SimpleNamespace(labels=("person",))

            def detect(self, image: bytes, **_options: object) -> Detections:
                if self.is_new and image == bad:
                    raise DetectionClientError("not this one")
                return found

            def detect_batch(self, paths: list[Path], **_options: object) -> list[Detections]:
                return [found for _ in paths]

        monkeypatch.setattr("promotion.gates.DetectionClient", Client)
        what = Images(folder=images, agreement=0.5)
        exam = Exam("grpc://x", "x", what, Limits(max_drop=0.5, max_failures=allowed), Stages())
        exam.ask_current()
        if not allowed:
            with pytest.raises(GateError, match="1 of 6 images got no answer, and 0 may"):
                exam.candidate("x_candidate")
            return
        exam.candidate("x_candidate")
        promoted.append("x")
        exam.public()

    def test_no_images(self, tmp_path: Path) -> None:
        exam = Exam("grpc://127.0.0.1:1", "x", Images(folder=tmp_path), Limits(), Stages())
        with pytest.raises(PromotionError, match="there are no images in"):
            exam.ask_current()


def test_the_repository_is_the_servers(tmp_path: Path) -> None:
    assert repository_of(None, tmp_path) == tmp_path
    assert repository_of(str(tmp_path), None) == tmp_path
    assert repository_of(str(tmp_path), tmp_path / "x" / "..") == tmp_path
    with pytest.raises(PromotionError, match="leave --repository out"):
        repository_of(str(tmp_path), tmp_path / "other")
    with pytest.raises(PromotionError, match="give its model repository as --repository DIR"):
        repository_of(None, None)


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "either a model or --rollback"),
            (["m.onnx", "--rollback"], "either a model or --rollback"),
            (["m.onnx"], "--images to evaluate with, or --no-evaluate"),
            (["m.onnx", "--images", "x", "--max-drop", "2"], "between 0 and 1"),
            (["m.onnx", "--images", "x", "--optimize", "int8"], "--calibration DIR go together"),
            (["m.onnx", "--images", "x", "--limit", "0"], "--limit must be at least 1"),
            (["m.onnx", "--no-evaluate", "--control-header", "x"], "NAME:VALUE"),
            (["--rollback", "--annotations", "x"], "those of --images"),
        ],
    )
    def test_usage(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as status:
            promote.main(arguments)
        assert status.value.code == 2
        assert message in capsys.readouterr().err

    def test_no_server(
        self, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = tmp_path / "report.json"
        arguments = ["m.onnx", "--no-evaluate", "--server", "grpc://127.0.0.1:1"]
        more = ["--repository", str(repository), "--json", str(report)]
        assert promote.main([*arguments, *more]) == 1
        assert "error: " in capsys.readouterr().err
        document = json.loads(report.read_text())
        assert document["error"]
        assert [stage["passed"] for stage in document["stages"]] == [False]

    def test_a_report_that_cannot_be_written(
        self, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        arguments = ["m.onnx", "--no-evaluate", "--server", "grpc://127.0.0.1:1"]
        more = ["--repository", str(repository), "--json", str(tmp_path / "file/report.json")]
        assert promote.main([*arguments, *more]) == 1
        assert "error: the report cannot be written: " in capsys.readouterr().err

    def test_no_address(self, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["m.onnx", "--no-evaluate", "--server", "localhost"]
        assert promote.main([*arguments, "--repository", str(repository)]) == 1
        assert "no address like grpc://" in capsys.readouterr().err

    def test_the_models_server_needs_an_address(self) -> None:
        with pytest.raises(PromotionError, match="ftp"):
            ModelServer("ftp://x")
