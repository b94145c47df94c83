"""Tuning: configurations edited in their text, and the repositories made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc.model_config_pb2 import ModelConfig

from detserve.model_config import string_parameters
from detserve.repository import RepositoryError
from tests.models import write_detector
from tuning.candidates import Machine, candidates
from tuning.pbtxt import locate
from tuning.rewrite import rewrite
from tuning.settings import Plan, apply_plan, read_plan, settings_of
from tuning.workspace import Workspace

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"

POLICY = """# Of no use to a client that has gone.
dynamic_batching {
  # Short waits: the detector is the slow part.
  max_queue_delay_microseconds: 100
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy { timeout_action: REJECT max_queue_size: 32 }  # about half a second
  priority_queue_policy [
    { key: 1 value: { max_queue_size: 64 } }
  ]
}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The model repository's configurations, with a small detector."""
    root = tmp_path / "models"
    ignored = shutil.ignore_patterns("model.onnx", "model.plan*", "__pycache__", ".new-*")
    shutil.copytree(REPOSITORY, root, ignore=ignored)
    write_detector(root / "detector/1/model.onnx", 300)
    return root


def every_candidate(workspace: Workspace, machine: Machine) -> list[Plan]:
    start = read_plan(workspace.settings.values(), workspace.configs)
    plans = [{**start, name: value} for name in start for value in candidates(name, machine, start)]
    batched: Plan = {**start, "preprocess.batching_delay_us": 500}
    for value in candidates("preprocess.preferred_batch_size", machine, batched):
        plans.append({**batched, "preprocess.preferred_batch_size": value})
    plans += [{**start, "preprocess.max_queue_size": size} for size in (1, 16)]
    return plans


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_every_candidate_is_a_configuration_and_goes_back(repository: Path, kind: str) -> None:
    workspace = Workspace(repository)
    machine = Machine.of(workspace.repository, workspace.configs, kind, 1)
    start = read_plan(workspace.settings.values(), workspace.configs)
    plans = every_candidate(workspace, machine)
    assert len(plans) > 10
    for plan in plans:
        texts = workspace.texts_of(plan)
        configs = apply_plan(workspace.settings, workspace.configs, plan)
        assert read_plan(workspace.settings.values(), configs) == plan
        for config in configs.values():
            text = texts[config.name]
            assert text_format.Parse(text, ModelConfig()) == config
            before = workspace.texts[config.name]
            comments = [line for line in before.splitlines() if line.startswith("#")]
            assert [line for line in text.splitlines() if line.startswith("#")] == comments
            kept = set(before.splitlines()) & set(text.splitlines())
            assert len(kept) >= len(set(before.splitlines())) - 15
        detector = json.loads(MessageToJson(configs["detector"], preserving_proto_field_name=True))
        assert isinstance(string_parameters(detector), dict)
    assert workspace.texts_of(start) == workspace.texts
    assert workspace.diff(start) == ""


def test_a_queue_policy_keeps_its_comments_and_its_other_fields() -> None:
    text = f'name: "preprocess"\nmax_batch_size: 16\n{POLICY}version_policy {{ latest {{ }} }}\n'
    config = text_format.Parse(text, ModelConfig())
    config.dynamic_batching.default_queue_policy.max_queue_size = 8
    config.dynamic_batching.max_queue_delay_microseconds = 0
    config.dynamic_batching.preferred_batch_size.extend([4, 8])
    changed = rewrite(text, config)
    assert text_format.Parse(changed, ModelConfig()) == config
    assert "{ timeout_action: REJECT max_queue_size: 8 }  # about half a second" in changed
    assert "  # Short waits: the detector is the slow part.\n" in changed
    assert "  preferred_batch_size: [4, 8]\n}" in changed
    assert "max_queue_delay" not in changed
    assert "priority_queue_policy [\n    { key: 1 value: { max_queue_size: 64 } }\n  ]" in changed


@pytest.mark.parametrize(
    "text",
    [
        "instance_group [ { count: 2 } ]",
        "instance_group { count: 2 }",
        "instance_group {\n  kind: KIND_CPU  # here\n  count: 2\n}",
        "instance_group: [ { count: 2, kind: KIND_CPU } ]",
        "instance_group < count: 2 >",
        "",
        "instance_group { }",
        "instance_group [ { count: 1 }, { count: 1 } ]",
    ],
)
def test_instances_are_set_in_any_form(text: str) -> None:
    before = f'# of a detector\nname: "detector"  # its name\n{text}\nbackend: "onnxruntime"\n'
    setting = settings_of("onnxruntime")["detector.instances"]
    configs = {"detector": text_format.Parse(before, ModelConfig())}
    setting.write(configs, 5)
    after = rewrite(before, configs["detector"])
    read = {"detector": text_format.Parse(after, ModelConfig())}
    assert setting.read(read) == 5
    assert after.startswith('# of a detector\nname: "detector"  # its name\n')
    assert ("# here" in after) == ("# here" in before)


@pytest.mark.parametrize(
    "text",
    [
        'parameters { key: "intra_op_thread_count" value: { string_value: "2" } }  # two',
        "parameters [ { key: 'intra_op_thread_count' value: { string_value: \"2\" } },\n"
        '  { key: "other" value: { string_value: "}# [" } } ]',
        "",
    ],
)
def test_threads_are_set_and_unset_in_any_form(text: str) -> None:
    before = f'name: "detector"\n{text}\n# the end\n'
    setting = settings_of("onnxruntime")["detector.threads"]
    configs = {"detector": text_format.Parse(before, ModelConfig())}
    for value in (4, "auto", 1):
        setting.write(configs, value)
        after = rewrite(before, configs["detector"])
        assert text_format.Parse(after, ModelConfig()) == configs["detector"]
        assert setting.read({"detector": text_format.Parse(after, ModelConfig())}) == value
        assert "# the end" in after
        before = after


@pytest.mark.parametrize("text", ["name: ", "{", "name: }", 'name "x', "input ["])
def test_what_is_no_protobuf_text_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"wanted|early|unexpected"):
        locate(text)


# --- repositories ------------------------------------------------------------------------------


def plan_of(workspace: Workspace, **values: int | str) -> Plan:
    start = read_plan(workspace.settings.values(), workspace.configs)
    return {**start, **{name.replace("__", "."): value for name, value in values.items()}}


def test_a_trial_has_the_plans_configurations_and_links(repository: Path, tmp_path: Path) -> None:
    workspace = Workspace(repository)
    workspace.save(plan_of(workspace, detector__instances=7), tmp_path / "out/models")
    workspace.save(plan_of(workspace, detector__instances=8), tmp_path / "out/models")
    made = tmp_path / "out/models"
    assert Workspace(made).configs["detector"].instance_group[0].count == 8
    assert (made / "detector/1/model.onnx").is_symlink()
    assert (made / "preprocess/warmup/grey_jpeg").read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["models"]
    assert Workspace(repository).texts == workspace.texts


def test_what_is_applied_can_be_taken_back(repository: Path, tmp_path: Path) -> None:
    workspace = Workspace(repository)
    plan = plan_of(workspace, detector__instances=7, preprocess__batching_delay_us=500)
    changed = workspace.apply(plan, tmp_path / "replaced")
    assert {path.parent.name for path in changed} == {"detector", "preprocess"}
    assert Workspace(repository).texts == workspace.texts_of(plan)
    shutil.copytree(tmp_path / "replaced", repository, dirs_exist_ok=True)
    assert Workspace(repository).texts == workspace.texts


def test_a_configuration_that_somebody_changed_is_left_alone(
    repository: Path, tmp_path: Path
) -> None:
    workspace = Workspace(repository)
    config = repository / "postprocess/config.pbtxt"
    config.write_text(config.read_text() + "# mine\n")
    before = Workspace(repository).texts
    with pytest.raises(RepositoryError, match="has been changed since"):
        workspace.apply(plan_of(workspace, detector__instances=7), tmp_path / "replaced")
    assert Workspace(repository).texts == before


def test_an_interruption_leaves_the_repository_whole(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(repository)
    plan = plan_of(workspace, detector__instances=7, postprocess__instances=5)
    replace = Path.replace
    hits: list[Path] = []

    def interrupted(self: Path, target: Path) -> Path:
        if target.parent == repository / "postprocess" and not hits:
            hits.append(target)
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workspace.apply(plan, tmp_path / "replaced")
    monkeypatch.undo()
    assert Workspace(repository).texts == workspace.texts
