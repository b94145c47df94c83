"""How ensembles are named and served: the engines, and what can be asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from tritonclient.grpc import model_config_pb2 as pb

from detserve.repository import DetectorRepository, RepositoryError

__all__ = [
    "DEFAULT_ENSEMBLE",
    "ENGINES",
    "Kind",
    "ModelNames",
    "Serving",
    "adjust",
    "is_model_name",
    "limit_queue",
    "model_names",
    "set_max_batch",
]

Kind = Literal["auto", "cpu", "gpu"]

DEFAULT_ENSEMBLE = "detection"
_CANDIDATE = "_candidate"  # ends the name under which a promotion tries a detector
_PYTHON_BACKENDS = ("python", "preprocess_backend")
_CPU_QUEUE = 64  # requests that wait for the detector at most
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Engine(NamedTuple):
    """How Triton's backend for an engine is configured.

    Attributes:
        file: Name of the model's file in a version.
        kinds: Where its instances may run.
        max_batch: Greatest batch, unless something else is asked for.
        batched: Whether the backend takes batches of any size through `max_batch_size`.
        parameters: For the backend.
    """

    file: str
    kinds: tuple[Kind, ...]
    max_batch: int = 16
    batched: bool = True
    parameters: Mapping[str, str] = {}


ENGINES = {
    "onnxruntime": Engine("model.onnx", ("auto", "cpu", "gpu")),
    # With a `max_batch_size` Triton's OpenVINO backend runs batches of exactly that size, padding
    # smaller ones at full cost. A first dimension of -1 instead takes every batch as it comes.
    # No precision: OpenVINO computes in bfloat16 where the CPU has instructions for it. There the
    # default detector takes 0.69 of ONNX Runtime's time (in float32, 1.16) and loses 0.0006 of its
    # mAP. HINT_BF16, the one setting that the backend has, would emulate it on other CPUs.
    "openvino": Engine(
        "model.onnx",
        ("cpu",),
        batched=False,
        parameters={"NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"},
    ),
    "tensorrt": Engine("model.plan", ("gpu",), max_batch=8),
}


class ModelNames(NamedTuple):
    """An ensemble and its three steps."""

    ensemble: str
    preprocess: str
    detector: str
    postprocess: str

    @classmethod
    def of(cls, repository: DetectorRepository) -> Self:
        """Those of an ensemble that is there."""
        *steps, ensemble = (config.name for config in repository.configs)
        return cls(ensemble, *steps)


def is_model_name(name: str) -> bool:
    """Whether a model can be called that, and its folder."""
    return _NAME.fullmatch(name) is not None


def model_names(ensemble: str) -> ModelNames:
    """What a new ensemble's models are called: the default's plainly, others' by its name.

    Raises:
        RepositoryError: The name cannot be one of a model.
    """
    if not is_model_name(ensemble):
        raise RepositoryError(
            f"{ensemble!r} cannot be an ensemble's name: letters, digits, '_', '-' and '.' can"
        )
    if ensemble.endswith(_CANDIDATE):
        raise RepositoryError(
            f"{ensemble!r} cannot be an ensemble's name: under names that end in {_CANDIDATE!r}"
            " scripts/promote.py tries detectors out, and removes them"
        )
    prefix = "" if ensemble == DEFAULT_ENSEMBLE else f"{ensemble}_"
    return ModelNames(ensemble, f"{prefix}preprocess", f"{prefix}detector", f"{prefix}postprocess")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How an ensemble is served; what is None stays as it is, or has its default.

    Attributes:
        instances: Instances of the detector; 2 by default, so that one that dies costs no more
            than its own requests.
        kind: Where they run: `cpu`, `gpu`, or `auto` for a GPU where there is one.
        max_batch: Greatest batch of a request, and of what is batched together.
        dynamic_batching: Microseconds that a request may wait for others to be run with, or `off`;
            by default 0 on a GPU, and off elsewhere: a CPU takes for a batch as long as for its
            images one by one.
    """

    instances: int | None = None
    kind: Kind | None = None
    max_batch: int | None = None
    dynamic_batching: int | Literal["off"] | None = None

    def __post_init__(self) -> None:
        for name, least in (("instances", 1), ("max_batch", 1), ("dynamic_batching", 0)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                option = name.replace("_", "-")
                raise RepositoryError(f"--{option} must be at least {least}, got {value}")


def limit_queue(config: pb.ModelConfig, *, size: int = 0, timeout_us: int = 0) -> None:
    """Let overload be refused with UNAVAILABLE, and requests of priority 1 go before those of 2.

    Args:
        config: Of a step; it gets dynamic batching, which is what has a queue with limits.
        size: Requests that wait at most. Not for the first step of an ensemble: Triton before 24.12
            can crash when that refuses one just as a gRPC deadline expires.
        timeout_us: Microseconds that one waits at most.
    """
    batching = config.dynamic_batching
    batching.priority_levels = batching.default_priority_level = 2
    policy = batching.default_queue_policy
    policy.timeout_action = pb.ModelQueuePolicy.REJECT
    policy.allow_timeout_override = True
    policy.max_queue_size, policy.default_timeout_microseconds = size, timeout_us


def set_max_batch(config: pb.ModelConfig, size: int) -> None:
    """Set the greatest batch of a model, and warm Python models up with it.

    Those pass tensors through shared memory that grows with the batch: that there is enough of it
    shows at the start then, and not under load.
    """
    config.max_batch_size = size
    if config.backend in _PYTHON_BACKENDS:
        for sample in config.model_warmup:
            sample.batch_size = size


def adjust(
    configs: Mapping[str, pb.ModelConfig], names: ModelNames, engine: str, serving: Serving
) -> None:
    """Set in the configurations of an ensemble what is asked for, and leave the rest.

    Raises:
        RepositoryError: The detector's engine has no such setting.
    """
    detector, backend = configs[names.detector], ENGINES[engine]
    if serving.max_batch is not None:
        for config in configs.values():
            if config is not detector or backend.batched:
                set_max_batch(config, serving.max_batch)
    _set_instances(detector, engine, serving)
    _set_batching(detector, engine, serving)


def _set_instances(detector: pb.ModelConfig, engine: str, serving: Serving) -> None:
    if serving.kind is None and serving.instances is None:
        return
    kinds = ENGINES[engine].kinds
    if serving.kind is not None and serving.kind not in kinds:
        raise RepositoryError(
            f"{engine} runs on --kind {' or '.join(kinds)}, not on {serving.kind}"
        )
    if len(detector.instance_group) != 1:
        del detector.instance_group[:]
        detector.instance_group.add(count=2)
    (group,) = detector.instance_group
    group.count = serving.instances or group.count
    if serving.kind is not None:
        group.kind = getattr(pb.ModelInstanceGroup, f"KIND_{serving.kind.upper()}")


def _set_batching(detector: pb.ModelConfig, engine: str, serving: Serving) -> None:
    """Batch requests together, or not: batches of one have a queue with limits nevertheless."""
    asked, batched = serving.dynamic_batching, ENGINES[engine].batched
    if not batched and asked not in (None, "off"):
        raise RepositoryError(
            f"{engine} does not batch requests together: its backend in Triton pads every"
            " batch to the greatest. Leave --dynamic-batching off"
        )
    batching = detector.dynamic_batching
    if asked is not None and not batching.HasField("default_queue_policy"):
        limit_queue(detector, size=_CPU_QUEUE)
    if not batched:  # without a max_batch_size nothing is put together, and the queue has its limit
        return
    if asked is not None:
        batching.max_queue_delay_microseconds = 0 if asked == "off" else asked
        del batching.preferred_batch_size[:]
        if asked == "off":
            batching.preferred_batch_size.append(1)
        else:  # room for the batches that run, and as many again
            policy, batches = batching.default_queue_policy, 2 * detector.instance_group[0].count
            policy.max_queue_size = max(_CPU_QUEUE, 2 * batches * detector.max_batch_size)
    together = list(batching.preferred_batch_size) != [1]
    if engine == "tensorrt" and together and (asked is not None or serving.max_batch is not None):
        # The kernels are chosen for the profile's middle, and the greatest is the most efficient.
        greatest = detector.max_batch_size
        del batching.preferred_batch_size[:]
        batching.preferred_batch_size.extend(sorted({-(-greatest // 2), greatest}))
