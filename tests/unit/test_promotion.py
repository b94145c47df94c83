"""The parts of a promotion that need no server."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format

import promote
from assembly import Serving
from contract import DetectorInfo
from detserve.detections import Detections
from detserve.repository import DetectorRepository, RepositoryError, read_model_config
from evaluation import Evaluation
from local_server import unused_models
from promotion import GateError, Limits, PromotionError
from promotion.bundle import build
from promotion.exam import Exam, Images
from promotion.gates import check_accuracy, nonsense
from promotion.generations import Generations
from promotion.model_server import ModelServer
from promotion.stages import Stages
from promotion.switch import repository_of
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
        for name in ("rename", "replace", "mkdir", "write_text", "write_bytes", "rmdir"):
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
            ended = crash_after(calls, partial(promote_to, at(crashed), model))
            served = steps(crashed)[:2]
            outcomes.append(served)
            assert served in (old, new)
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

    def test_two_at_once_are_refused(self, generations: Generations) -> None:
        other = Generations(generations.repository, "detection")
        with (
            generations.exclusive(),
            pytest.raises(PromotionError, match="another promotion of detection"),
            other.exclusive(),
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

    def test_no_images(self, tmp_path: Path) -> None:
        exam = Exam("grpc://127.0.0.1:1", "x", Images(folder=tmp_path), Limits(), Stages())
        with pytest.raises(PromotionError, match="holds no images"):
            exam.ask_current()


def test_the_repository_is_the_servers(tmp_path: Path) -> None:
    default = tmp_path / "default"
    assert repository_of(None, None, default) == default
    assert repository_of(None, tmp_path, default) == tmp_path
    assert repository_of(str(tmp_path), None, default) == tmp_path
    assert repository_of(str(tmp_path), tmp_path / "x" / "..", default) == tmp_path
    with pytest.raises(PromotionError, match="leave --repository out"):
        repository_of(str(tmp_path), default, default)


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

    def test_no_address(self, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["m.onnx", "--no-evaluate", "--server", "localhost"]
        assert promote.main([*arguments, "--repository", str(repository)]) == 1
        assert "no address like grpc://" in capsys.readouterr().err

    def test_the_models_server_needs_an_address(self) -> None:
        with pytest.raises(PromotionError, match="ftp"):
            ModelServer("ftp://x")
