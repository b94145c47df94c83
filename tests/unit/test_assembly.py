"""Putting detectors into a model repository, and taking versions back."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

import coco
from assembly import Serving, install, list_ensembles, remove, roll_back
from assembly.changes import Changes
from contract import DetectorInfo
from detserve.imaging import PreprocessSettings
from detserve.nms import SelectionSettings
from detserve.pipeline import Pipeline
from detserve.repository import DetectorRepository, RepositoryError, read_model_config
from tests.models import write_detector

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
SMALL = DetectorInfo(input_size_wh=(96, 64), labels=("cup", "cat"), family="yolox")
DEFAULT = DetectorInfo(input_size_wh=(300, 300), labels=coco.LABELS, resize="stretch")
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes detectors that say of themselves what `info` does."""
    numbers = iter(range(100))

    def make_one(info: DetectorInfo = SMALL) -> Path:
        path = write_detector(
            tmp_path / f"detector-{next(numbers)}.onnx", rows=np.zeros((300, 6), np.float32)
        )
        model = onnx.load(path)
        for dim, size in zip(
            model.graph.input[0].type.tensor_type.shape.dim[1:3],
            reversed(info.input_size_wh),
            strict=True,
        ):
            dim.dim_value = size
        model.producer_version = path.stem  # no two files are alike
        info.write_to(model)
        onnx.save(model, path)
        return path

    return make_one


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The project's repository without a detector."""
    ignored = shutil.ignore_patterns("*.onnx", "*.plan", "__pycache__", "[2-9]*")
    return Path(shutil.copytree(REPOSITORY, tmp_path / "repository", ignore=ignored))


def state(root: Path) -> dict[str, bytes]:
    """Every file, and every folder as an empty one."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in root.rglob("*")
    }


def edit(root: Path, model: str, text: str) -> None:
    """Add to a configuration."""
    path = root / model / "config.pbtxt"
    path.write_text(f"{path.read_text()}\n{text}\n")


def promoted(root: Path, number: int) -> None:
    """Serve another detector as a promotion does, which is a generation's number."""
    name = f"detector_v{number}"
    config = config_of(root, "detection")
    models = {step.model_name for step in config.ensemble_scheduling.step}
    shutil.copytree(root / "detector", root / name)
    detector = config_of(root, name)
    detector.name = name
    (root / name / "config.pbtxt").write_text(text_format.MessageToString(detector))
    config.ensemble_scheduling.step[1].model_name = name
    config.version_policy.specific.versions[:] = [number]
    (root / "detection/config.pbtxt").write_text(text_format.MessageToString(config))
    record = root / "detection/generations.json"
    known = set(json.loads(record.read_text())["models"]) if record.exists() else models
    known |= {name, "detection_candidate"}
    record.write_text(json.dumps({"models": sorted(known)}))


def config_of(root: Path, model: str) -> ModelConfig:
    return read_model_config(root / model)


def test_the_default_detector_leaves_the_repository_as_it_is_committed(
    root: Path, make: Make
) -> None:
    before = state(root)
    done = install(make(DEFAULT), root)
    assert done.changed == ()
    assert done.version == done.served == 1
    assert state(root) == {**before, "detector/1/model.onnx": done.path.read_bytes()}


def test_the_committed_configurations_are_the_derived_ones(tmp_path: Path, make: Make) -> None:
    """The defaults stand in one place: a new repository gets what is committed."""
    install(make(DEFAULT), tmp_path / "new")
    for name in ("detection", "preprocess", "detector", "postprocess"):
        assert config_of(tmp_path / "new", name) == config_of(REPOSITORY, name)
    for file in ("detector/labels.txt", "postprocess/1/model.py", "preprocess/warmup/grey_jpeg"):
        assert (tmp_path / "new" / file).read_bytes() == (REPOSITORY / file).read_bytes()


def test_a_new_ensemble(root: Path, make: Make) -> None:
    install(make(DEFAULT), root)
    before = state(root)
    model = make(replace(SMALL, anchor="top-left", pad_value=0, iou_threshold=1.0))
    done = install(model, root, ensemble="small")
    assert done.detector == "small_detector"
    assert done.path == root / "small_detector/1/model.onnx"
    assert done.path.read_bytes() == model.read_bytes()
    after = state(root)
    assert {name: after[name] for name in before} == before
    read = DetectorRepository(root, "small")
    assert [config.name for config in read.configs] == [
        "small_preprocess", "small_detector", "small_postprocess", "small",
    ]  # fmt: skip
    assert read.preprocess_settings() == PreprocessSettings(
        width=96, height=64, resize="letterbox", anchor="top-left", pad_value=0
    )
    assert read.selection_settings().iou_threshold == 1
    assert read.labels() == tuple(read.served_labels()) == ("cup", "cat")
    assert Pipeline.from_repository(root, ensemble="small").labels == ("cup", "cat")


def test_without_labels(tmp_path: Path, make: Make) -> None:
    install(make(replace(SMALL, labels=())), tmp_path / "new")
    read = DetectorRepository(tmp_path / "new")
    assert read.labels() == ()
    assert read.served_labels() == []
    assert not (tmp_path / "new/detector/labels.txt").exists()


def test_labels_in_other_scripts(tmp_path: Path, make: Make) -> None:
    labels = ("Männchen", "ねこ", 'a "b"\\')
    install(make(replace(SMALL, labels=labels)), tmp_path / "new")
    read = DetectorRepository(tmp_path / "new")
    assert read.labels() == tuple(read.served_labels()) == labels


def test_labels_that_are_no_lines(tmp_path: Path, make: Make) -> None:
    with pytest.raises(RepositoryError, match=r"a label must be one line.*'a\\nb'"):
        install(make(replace(SMALL, labels=("a\nb",))), tmp_path / "new")


def test_versions(root: Path, make: Make) -> None:
    models = [make(DEFAULT) for _ in range(4)]
    assert [install(model, root).version for model in models[:3]] == [1, 2, 3]
    done = install(models[3], root, version=7, keep=2)
    assert (done.version, done.served, done.pruned) == (7, 7, (1, 2))
    read = DetectorRepository(root)
    assert read.versions() == [3, 7]
    assert read.model_file().read_bytes() == models[3].read_bytes()
    assert (root / "detector/1/.gitkeep").is_file()  # not ours to remove
    assert not (root / "detector/2").exists()


def test_the_version_that_is_served_is_kept(root: Path, make: Make) -> None:
    install(make(DEFAULT), root)
    edit(root, "detector", "version_policy { specific { versions: [1] } }")
    install(make(DEFAULT), root, keep=2)
    done = install(make(DEFAULT), root, keep=2)
    assert (done.version, done.served, done.pruned) == (3, 1, ())
    done = install(make(DEFAULT), root, keep=2)
    assert (done.version, done.served, done.pruned) == (4, 1, (2,))
    assert DetectorRepository(root).versions() == [1, 3, 4]


def test_a_served_version_that_is_not_there(root: Path, make: Make) -> None:
    edit(root, "detector", "version_policy { specific { versions: [9] } }")
    assert install(make(DEFAULT), root).served is None


def test_a_version_that_would_not_be_served(root: Path, make: Make) -> None:
    install(make(DEFAULT), root, version=3)
    for version in (1, 3):
        with pytest.raises(
            RepositoryError, match=f"version {version} .*Leave the number out for 4"
        ):
            install(make(DEFAULT), root, version=version)
    with pytest.raises(RepositoryError, match="from 1, got 0"):
        install(make(DEFAULT), root, version=0)
    model = make(DEFAULT)
    done = install(model, root, version=1, overwrite=True)
    assert (done.version, done.served) == (1, 3)


def test_comments_and_tuning_stay(root: Path, make: Make) -> None:
    config = root / "postprocess/config.pbtxt"
    config.write_text(config.read_text().replace('"0.3"', '"0.4"') + "# tuned\n")
    before = config.read_bytes()
    install(make(DEFAULT), root)
    assert install(make(DEFAULT), root, serving=Serving(instances=3)).changed == (
        root / "detector/config.pbtxt",
    )
    assert config.read_bytes() == before
    expected = config_of(REPOSITORY, "detector")
    expected.instance_group[0].count = 3
    assert config_of(root, "detector") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size_wh": (320, 320)}, r"input size: 320 x 320; the ensemble's: 300 x 300"),
        ({"resize": "letterbox"}, "resize: letterbox; the ensemble's: stretch"),
        ({"labels": ("a", "b")}, r"labels: 2 \(a, b\); the ensemble's: 80 \(person, bicycle, car,"),
        ({"iou_threshold": 1.0}, "postprocessing: no suppression of overlaps"),
    ],
    ids=str,
)
def test_a_model_that_does_not_fit(
    root: Path, make: Make, change: dict[str, object], message: str
) -> None:
    install(make(DEFAULT), root)
    before = state(root)
    model = make(replace(DEFAULT, **change))  # type: ignore[arg-type]
    with pytest.raises(RepositoryError, match=message) as raised:
        install(model, root)
    assert "--ensemble NAME" in str(raised.value)
    assert "--replace" in str(raised.value)
    assert state(root) == before


def test_what_a_file_does_not_say_fits(root: Path, tmp_path: Path) -> None:
    plain = write_detector(tmp_path / "plain.onnx", size=300, rows=np.zeros((300, 6), np.float32))
    assert install(plain, root).version == 1
    assert DetectorRepository(root).preprocess_settings().resize == "stretch"


def test_files_that_are_no_detectors(root: Path, tmp_path: Path) -> None:
    before = state(root)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage")
    with pytest.raises(RepositoryError, match="cannot be read as an ONNX model"):
        install(garbage, root)
    with pytest.raises(RepositoryError, match=r"missing\.onnx cannot be read"):
        install(tmp_path / "missing.onnx", root)
    rows = write_detector(tmp_path / "rows.onnx", size=300)
    with pytest.raises(RepositoryError, match=r"candidates FLOAT \[N, 3, 6\]; a detector has"):
        install(rows, root)
    with pytest.raises(
        RepositoryError, match="no engine 'onnx': choose from onnxruntime, openvino"
    ):
        install(rows, root, engine="onnx")
    assert state(root) == before


def test_labels_that_disagree(root: Path, make: Make) -> None:
    (root / "detector/labels.txt").write_text("cat\ndog\n")
    with pytest.raises(RepositoryError, match="different lists: make them the same"):
        install(make(DEFAULT), root)


@pytest.mark.parametrize("name", ["", "../other", "a b", ".hidden"])
def test_names_that_are_none(root: Path, make: Make, name: str) -> None:
    with pytest.raises(RepositoryError, match="cannot be an ensemble's name"):
        install(make(), root, ensemble=name)


def test_a_name_that_promotions_use(root: Path, make: Make) -> None:
    before = state(root)
    with pytest.raises(RepositoryError, match=r"'cars_candidate' cannot be .*promote"):
        install(make(), root, ensemble="cars_candidate")
    assert state(root) == before
    assert install(make(), root, ensemble="cars_candidates").version == 1


def test_rollback(root: Path, make: Make) -> None:
    first, second = make(DEFAULT), make(DEFAULT)
    install(first, root)
    with pytest.raises(RepositoryError, match="no version before 1 to go back to"):
        roll_back(root, "detection")
    install(second, root)
    assert roll_back(root, "detection") == (2, 1)
    read = DetectorRepository(root)
    assert read.versions() == [1]
    assert read.model_file().read_bytes() == first.read_bytes()
    assert (root / "detector/retired-2/model.onnx").read_bytes() == second.read_bytes()
    # A number is used once: what was measured of version 2 stays true of it alone.
    assert install(make(DEFAULT), root).version == 3
    assert not (root / "detector/retired-2").exists()


def test_replacing_the_configurations_and_rolling_back(root: Path, make: Make) -> None:
    config = root / "postprocess/config.pbtxt"
    config.write_text(config.read_text() + "# tuned\n")
    install(make(DEFAULT), root)
    before = state(root)
    done = install(make(SMALL), root, replace_configs=True)
    assert {path.name for path in done.changed} >= {"config.pbtxt", "labels.txt"}
    assert Pipeline.from_repository(root).labels == ("cup", "cat")
    assert roll_back(root, "detection") == (2, 1)
    after = state(root)
    assert {name for name in after if name not in before} == {
        "detector/retired-2", "detector/retired-2/model.onnx",
    }  # fmt: skip
    assert {name: after[name] for name in before} == before


def test_what_is_tuned_stays_when_the_detector_is_replaced(root: Path, make: Make) -> None:
    install(make(DEFAULT), root, serving=Serving(instances=3, max_batch=4, dynamic_batching=50))
    for model, old, new in (
        ("preprocess", "50000000", "9000000"),
        ("postprocess", '"0.3"', '"0.4"'),
        ("postprocess", '"0.5"', '"0.6"'),
    ):
        path = root / model / "config.pbtxt"
        path.write_text(path.read_text().replace(old, new))
    install(make(SMALL), root, replace_configs=True)
    read = DetectorRepository(root)
    fit = read.preprocess_settings()
    assert (fit.width, fit.resize, fit.max_pixels) == (96, "letterbox", 9_000_000)
    assert read.selection_settings() == SelectionSettings(score_threshold=0.4, iou_threshold=0.6)
    assert [config.max_batch_size for config in read.configs] == [4] * 4
    assert read.detector.instance_group[0].count == 3
    assert read.detector.dynamic_batching.max_queue_delay_microseconds == 50
    assert list(read.detector.model_warmup[0].inputs["images"].dims) == [64, 96, 3]
    install(make(replace(DEFAULT, iou_threshold=1.0)), root, replace_configs=True)
    read = DetectorRepository(root)
    assert read.selection_settings() == SelectionSettings(score_threshold=0.4, iou_threshold=1)
    assert "anchor" not in read.preprocess.parameters
    assert len(read.labels()) == 80


def test_a_replaced_detector_brings_its_own_suppression(root: Path, make: Make) -> None:
    install(make(DEFAULT), root)
    install(make(replace(SMALL, iou_threshold=0.65)), root, replace_configs=True)
    parameters = config_of(root, "postprocess").parameters
    assert parameters["iou_threshold"].string_value == "0.65"


def test_another_engine_for_a_file_that_says_nothing(root: Path, tmp_path: Path) -> None:
    plain = write_detector(tmp_path / "plain.onnx", size=300, rows=np.zeros((300, 6), np.float32))
    before = [config_of(root, name) for name in ("detection", "preprocess", "postprocess")]
    install(plain, root, engine="openvino", replace_configs=True)
    after = [config_of(root, name) for name in ("detection", "preprocess", "postprocess")]
    assert after == before
    assert len(DetectorRepository(root).labels()) == 80


def test_another_engine_and_back(root: Path, make: Make) -> None:
    pytest.importorskip("openvino")
    install(make(DEFAULT), root)
    before = state(root)
    with pytest.raises(RepositoryError, match="engine: openvino; the ensemble's: onnxruntime"):
        install(make(DEFAULT), root, engine="openvino")
    assert install(make(DEFAULT), root, engine="openvino", replace_configs=True).version == 2
    assert install(make(DEFAULT), root).engine == "openvino"
    roll_back(root, "detection")
    roll_back(root, "detection")
    assert {name: state(root)[name] for name in before} == before


def test_a_check_that_refuses(root: Path, make: Make) -> None:
    install(make(DEFAULT), root)
    before = state(root)
    seen = []

    def check(repository: Path, ensemble: str) -> None:
        seen.append(DetectorRepository(repository, ensemble).versions())
        assert repository != root
        assert state(root) == before
        raise RepositoryError("it does not load")

    for ensemble, version in (("detection", 2), ("other", 1)):
        with pytest.raises(RepositoryError, match="it does not load"):
            install(make(DEFAULT), root, ensemble=ensemble, check=check)
        assert seen.pop() == [version]
    assert state(root) == before


class Interrupted(BaseException):
    """As `KeyboardInterrupt` is, which pytest would take for its own."""


@pytest.mark.parametrize("ensemble", ["detection", "other"])
def test_an_interruption_leaves_the_repository_as_it_was(
    root: Path, make: Make, monkeypatch: pytest.MonkeyPatch, ensemble: str
) -> None:
    """After every file that is written and every folder that is moved, in turn."""
    install(make(DEFAULT), root)
    before = state(root)
    model = make(SMALL)
    steps = 0

    def counted(method: Callable[..., object]) -> Callable[..., object]:
        def count(*arguments: object) -> object:
            nonlocal steps
            result = method(*arguments)
            steps -= 1
            if steps == 0:
                raise Interrupted
            return result

        return count

    for name in ("write", "folder", "temporary", "add_folder"):
        monkeypatch.setattr(Changes, name, counted(getattr(Changes, name)))
    for at in itertools.count(1):
        steps = at
        try:
            install(model, root, ensemble=ensemble, replace_configs=True)
        except Interrupted:
            assert state(root) == before, f"at step {at}"
        else:
            break
    assert at > 15
    assert Pipeline.from_repository(root, ensemble=ensemble).labels == ("cup", "cat")


def test_changes_are_taken_back_while_others_are_kept_out(
    root: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(make(DEFAULT), root)
    undone = []

    def watched(file: Path, content: bytes) -> None:
        descriptor = os.open(root, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            undone.append(f"{file.name} without the lock")
        except BlockingIOError:
            undone.append("locked")
        finally:
            os.close(descriptor)
        file.write_bytes(content)

    def die(*_: object) -> None:
        monkeypatch.setattr("assembly.changes.write_atomically", watched)
        raise Interrupted

    monkeypatch.setattr(Changes, "add_folder", die)
    with pytest.raises(Interrupted):
        install(make(SMALL), root, replace_configs=True)
    assert set(undone) == {"locked"}


def test_a_kill_while_configurations_are_replaced(
    root: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(make(DEFAULT), root)
    before = state(root)

    def die(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(Changes, "add_folder", die)
        patched.setattr(Changes, "__exit__", lambda *_: None)  # nobody takes anything back
        with pytest.raises(Interrupted):
            install(make(SMALL), root, replace_configs=True)
    assert DetectorRepository(root).labels() == ("cup", "cat")
    install(make(DEFAULT), root)
    after = state(root)
    assert after.pop("detector/2/model.onnx")
    assert after == {**before, "detector/2": b""}


def test_remove(root: Path, make: Make) -> None:
    install(make(DEFAULT), root)
    before = state(root)
    install(make(), root, ensemble="small")
    assert sorted(remove(root, "small")) == [
        "small", "small_detector", "small_postprocess", "small_preprocess",
    ]  # fmt: skip
    assert state(root) == before
    with pytest.raises(RepositoryError, match="cannot read"):
        remove(root, "small")


def test_remove_leaves_what_others_use(root: Path, make: Make) -> None:
    install(make(DEFAULT), root)
    install(make(DEFAULT), root, ensemble="twin")
    config = config_of(root, "twin")
    config.ensemble_scheduling.step[2].model_name = "postprocess"
    (root / "twin/config.pbtxt").write_text(text_format.MessageToString(config))
    assert "postprocess" not in remove(root, "detection")
    assert DetectorRepository(root, "twin").postprocess.name == "postprocess"


def test_remove_what_has_been_promoted(root: Path, make: Make) -> None:
    """What would be left would be loaded by every server, for nobody."""
    install(make(SMALL), root, ensemble="small")
    before = state(root)
    install(make(DEFAULT), root)
    promoted(root, 2)
    promoted(root, 3)
    candidate = config_of(root, "detection")  # a promotion that was killed left it
    candidate.name = "detection_candidate"
    (root / "detection_candidate").mkdir()
    (root / "detection_candidate/config.pbtxt").write_text(text_format.MessageToString(candidate))
    gone = remove(root, "detection")
    assert gone[:2] == ["detection", "detection_candidate"]
    assert sorted(gone[2:]) == [
        "detector", "detector_v2", "detector_v3", "postprocess", "preprocess",
    ]  # fmt: skip
    assert {name for name in state(root) if not name.startswith("small")} == set()
    assert {name for name in before if name.startswith("small")} == set(state(root))


def test_remove_leaves_what_others_generations_use(root: Path, make: Make) -> None:
    install(make(DEFAULT), root)
    install(make(SMALL), root, ensemble="detection_candidate_2")
    (root / "detection_candidate_2").rename(root / "detection_candidate")  # a user's own
    install(make(SMALL), root, ensemble="small")
    (root / "small/generations.json").write_text('{"models": ["small_detector", "detector"]}')
    promoted(root, 2)
    gone = remove(root, "detection")
    assert sorted(gone) == ["detection", "detector_v2", "postprocess", "preprocess"]


@pytest.mark.parametrize("record", ["{", "[]", "{}", '{"models": ["../x"]}', '{"models": [[]]}'])
def test_remove_with_a_damaged_record(root: Path, make: Make, record: str) -> None:
    install(make(DEFAULT), root)
    (root / "detection/generations.json").write_text(record)
    before = state(root)
    with pytest.raises(RepositoryError, match=r"generations\.json is damaged"):
        remove(root, "detection")
    assert state(root) == before


def test_rollback_of_what_has_been_promoted(root: Path, make: Make) -> None:
    install(make(DEFAULT), root)
    promoted(root, 2)
    before = state(root)
    with pytest.raises(RepositoryError, match=r"promote\.py --rollback"):
        roll_back(root, "detection")
    assert state(root) == before
    install(make(DEFAULT), root)  # a version of the generation
    assert roll_back(root, "detection") == (2, 1)
    assert DetectorRepository(root).detector.name == "detector_v2"


def test_rollback_to_configurations_of_before_a_promotion(root: Path, make: Make) -> None:
    """Their ensemble has no number: it would be served as the promoted one was, from the cache."""
    install(make(DEFAULT), root)
    install(make(SMALL), root, replace_configs=True)
    (root / "detection/generations.json").write_text('{"models": []}')
    edit(root, "detection", "version_policy { specific { versions: [1] } }")
    (root / "detection/2").mkdir()
    before = state(root)
    with pytest.raises(RepositoryError, match=r"promote\.py --rollback"):
        roll_back(root, "detection")
    assert state(root) == before


def test_listing(root: Path, make: Make) -> None:
    install(make(DEFAULT), root)
    install(make(SMALL), root, ensemble="small")
    install(make(SMALL), root, ensemble="small")
    listed = [(item.ensemble, item.version, item.served) for item in list_ensembles(root)]
    assert listed == [("detection", 1, True), ("small", 1, False), ("small", 2, True)]
    about = next(item for item in list_ensembles(root) if item.ensemble == "small").about
    assert about == "yolox fp32 96x64, 2 labels"


def test_a_pinned_version_is_the_one_in_process(root: Path, make: Make) -> None:
    for _ in range(3):
        install(make(DEFAULT), root)
    path = root / "detector/config.pbtxt"
    path.write_text(path.read_text() + "version_policy { specific { versions: [1, 2] } }\n")
    assert DetectorRepository(root).served_version() == 2
    ensemble = config_of(root, "detection")
    ensemble.ensemble_scheduling.step[1].model_version = 1
    (root / "detection/config.pbtxt").write_text(text_format.MessageToString(ensemble))
    assert DetectorRepository(root).served_version() == 1
    assert DetectorRepository(root).model_file().parent.name == "1"
