"""What can be set in an ensemble's configurations, read and written one setting at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass

from tritonclient.grpc.model_config_pb2 import ModelConfig

from assembly.serving import set_max_batch
from detserve.repository import DetectorRepository

__all__ = ["STAGES", "Plan", "Setting", "apply_plan", "read_plan", "settings_of", "show"]

STAGES = ("preprocess", "detector", "postprocess")
OFF, AUTO = "off", "auto"

# A value of every setting.
Plan = dict[str, int | str]
Configs = dict[str, ModelConfig]  # by stage; the ensemble's is "ensemble"

# How a detector's backend is told its threads; TensorRT has none.
_THREADS = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}


@dataclass(frozen=True)
class Setting:
    """One thing that can be set.

    Attributes:
        name: The stage and the setting, as in "detector.instances".
        read: Its value in the configurations.
        write: Sets it there.
    """

    name: str
    read: Callable[[Configs], int | str]
    write: Callable[[Configs, int | str], None]

    @property
    def stage(self) -> str:
        """The stage, or "ensemble" where it is of all models."""
        return self.name.partition(".")[0]


def configs_of(repository: DetectorRepository) -> Configs:
    """The configurations of an ensemble by stage."""
    return dict(zip((*STAGES, "ensemble"), deepcopy(repository.configs), strict=True))


def settings_of(backend: str) -> dict[str, Setting]:
    """The settings of an ensemble, by name, in the order in which they are tried.

    Args:
        backend: Of its detector.
    """
    stages = ("detector", "preprocess", "postprocess")  # by what they usually give
    found = [_instances("detector")]
    if backend in _THREADS:
        found.append(_threads(_THREADS[backend]))
    for stage in stages:
        found += [_batching(stage), _preferred(stage)]
    found += [_instances(stage) for stage in stages[1:]]
    found.append(_max_batch())
    for stage in STAGES:
        found += [_queue_size(stage), _queue_timeout(stage)]
    return {setting.name: setting for setting in found}


def read_plan(settings: Iterable[Setting], configs: Configs) -> Plan:
    """The values that configurations have."""
    return {setting.name: setting.read(configs) for setting in settings}


def apply_plan(settings: Mapping[str, Setting], configs: Configs, plan: Plan) -> Configs:
    """A copy of configurations with the values of a plan; those that have them stay as they are."""
    changed = deepcopy(configs)
    for name, setting in settings.items():
        if setting.read(changed) != plan[name]:
            setting.write(changed, plan[name])
    return changed


def show(value: int | str) -> str:
    """A value as a report shows it."""
    return "none" if value == "" else str(value)


def _instances(stage: str) -> Setting:
    def read(configs: Configs) -> int:
        # Triton makes one instance where nothing is said, and of a group that has no count.
        return sum(group.count or 1 for group in configs[stage].instance_group) or 1

    def write(configs: Configs, value: int | str) -> None:
        groups = configs[stage].instance_group
        if len(groups) != 1:
            del groups[1:]
        if not groups:
            groups.add()
        groups[0].count = int(value)

    return Setting(f"{stage}.instances", read, write)


def _threads(parameter: str) -> Setting:
    def read(configs: Configs) -> int | str:
        parameters = configs["detector"].parameters
        text = parameters[parameter].string_value if parameter in parameters else ""
        return int(text) if text.isdecimal() and int(text) else AUTO

    def write(configs: Configs, value: int | str) -> None:
        parameters = configs["detector"].parameters
        if value == AUTO:
            del parameters[parameter]
        else:
            parameters[parameter].string_value = str(value)

    return Setting("detector.threads", read, write)


def _batching(stage: str) -> Setting:
    def read(configs: Configs) -> int | str:
        config = configs[stage]
        if not config.HasField("dynamic_batching"):
            return OFF
        return int(config.dynamic_batching.max_queue_delay_microseconds)

    def write(configs: Configs, value: int | str) -> None:
        config = configs[stage]
        if value == OFF:
            config.ClearField("dynamic_batching")
        else:
            config.dynamic_batching.SetInParent()
            config.dynamic_batching.max_queue_delay_microseconds = int(value)

    return Setting(f"{stage}.batching_delay_us", read, write)


def _preferred(stage: str) -> Setting:
    def read(configs: Configs) -> str:
        return ",".join(map(str, configs[stage].dynamic_batching.preferred_batch_size))

    def write(configs: Configs, value: int | str) -> None:
        if configs[stage].HasField("dynamic_batching"):
            sizes = configs[stage].dynamic_batching.preferred_batch_size
            del sizes[:]
            sizes.extend(int(size) for size in str(value).split(",") if size)

    return Setting(f"{stage}.preferred_batch_size", read, write)


def _max_batch() -> Setting:
    def read(configs: Configs) -> int:
        return int(configs["ensemble"].max_batch_size)

    def write(configs: Configs, value: int | str) -> None:
        # Triton wants every step to take what the ensemble takes. A step of no greatest batch, as
        # of OpenVINO's backend, takes any.
        for config in configs.values():
            if config.max_batch_size:
                set_max_batch(config, int(value))

    return Setting("ensemble.max_batch_size", read, write)


def _queue_size(stage: str) -> Setting:
    def read(configs: Configs) -> int:
        return int(configs[stage].dynamic_batching.default_queue_policy.max_queue_size)

    def write(configs: Configs, value: int | str) -> None:
        if configs[stage].HasField("dynamic_batching"):
            batching = configs[stage].dynamic_batching
            batching.default_queue_policy.max_queue_size = int(value)

    return Setting(f"{stage}.max_queue_size", read, write)


def _queue_timeout(stage: str) -> Setting:
    def read(configs: Configs) -> int:
        policy = configs[stage].dynamic_batching.default_queue_policy
        return int(policy.default_timeout_microseconds)

    def write(configs: Configs, value: int | str) -> None:
        if configs[stage].HasField("dynamic_batching"):
            policy = configs[stage].dynamic_batching.default_queue_policy
            policy.default_timeout_microseconds = int(value)

    return Setting(f"{stage}.queue_timeout_us", read, write)
