"""The configurations of one ensemble, as protobuf messages, derived from what its detector is."""

from __future__ import annotations

import json
from copy import deepcopy

from tritonclient.grpc import model_config_pb2 as pb

from assembly.serving import ENGINES, ModelNames, Serving, adjust, limit_queue
from contract import CANDIDATES, DetectorInfo
from detserve.imaging import PreprocessSettings
from detserve.nms import SelectionSettings
from detserve.repository import DetectorRepository, RepositoryError

__all__ = ["WARMUP_IMAGE", "derive_configs", "reconfigure"]

WARMUP_IMAGE = "grey_jpeg"  # in preprocess/warmup
_THRESHOLDS = {
    "SCORE_THRESHOLD": pb.TYPE_FP32,
    "IOU_THRESHOLD": pb.TYPE_FP32,
    "MAX_DETECTIONS": pb.TYPE_INT32,
}
_DETECTIONS: dict[str, tuple[int, list[int]]] = {
    "num_detections": (pb.TYPE_INT32, [1]),
    "detection_boxes": (pb.TYPE_FP32, [CANDIDATES, 4]),
    "detection_scores": (pb.TYPE_FP32, [CANDIDATES]),
    "detection_classes": (pb.TYPE_INT32, [CANDIDATES]),
}


def derive_configs(
    names: ModelNames, info: DetectorInfo, engine: str, serving: Serving
) -> dict[str, pb.ModelConfig]:
    """Configure a new ensemble.

    Args:
        names: What its models are called.
        info: What the detector's file says of itself.
        engine: Key of `ENGINES`.
        serving: How to serve it.

    Returns:
        The configurations of its four models, by name; the ensemble's last.

    Raises:
        RepositoryError: The engine has no such setting, or a label cannot be one.
    """
    backend = ENGINES[engine]
    configs = {
        names.preprocess: _preprocess(names.preprocess, info),
        names.detector: _detector(names.detector, info, engine),
        names.postprocess: _postprocess(names.postprocess, info),
        names.ensemble: _ensemble(names, info),
    }
    kind = serving.kind or backend.kinds[0]
    delay = serving.dynamic_batching
    if delay is None:
        delay = 0 if kind == "gpu" else "off"
    instances, batch = serving.instances or 2, serving.max_batch or backend.max_batch
    adjust(
        configs,
        names,
        engine,
        Serving(kind=kind, instances=instances, max_batch=batch, dynamic_batching=delay),
    )
    return configs


def reconfigure(
    current: DetectorRepository,
    info: DetectorInfo,
    engine: str,
    serving: Serving,
    *,
    tuned: bool = True,
) -> dict[str, pb.ModelConfig]:
    """Configure an ensemble that is there for another detector.

    What does not depend on the detector stays as it is: limits, thresholds and instances, and for
    the same engine its own settings.

    Args:
        current: The ensemble.
        info: What the detector's file says of itself.
        engine: Key of `ENGINES`.
        serving: What is to change about how it is served.
        tuned: Whether the overlap that is suppressed was chosen for the ensemble, and stays; else
            it is what the detector's file says.

    Returns:
        The configurations of its four models, by name; the ensemble's last.

    Raises:
        RepositoryError: The engine has no such setting, or a label cannot be one.
    """
    names = ModelNames.of(current)
    fresh = derive_configs(names, info, engine, serving)
    configs = {config.name: deepcopy(config) for config in current.configs}
    if engine == current.backend:
        _take(configs[names.detector], fresh[names.detector], "input", "output", "model_warmup")
    else:
        configs[names.detector] = fresh[names.detector]
    _take(configs[names.preprocess], fresh[names.preprocess], "output")
    fit = ("resize", "anchor", "pad_value")
    _take_parameters(configs[names.preprocess], fresh[names.preprocess], *fit)
    # Even a tuned one goes where suppression is wanted and was not, or not and was.
    if not tuned or (info.iou_threshold >= 1) != (current.selection_settings().iou_threshold >= 1):
        _take_parameters(configs[names.postprocess], fresh[names.postprocess], "iou_threshold")
    _take_parameters(configs[names.ensemble], fresh[names.ensemble], "labels")
    adjust(configs, names, engine, serving)
    return configs


def _take(config: pb.ModelConfig, other: pb.ModelConfig, *fields: str) -> None:
    for field in fields:
        config.ClearField(field)
        getattr(config, field).extend(getattr(other, field))


def _take_parameters(config: pb.ModelConfig, other: pb.ModelConfig, *names: str) -> None:
    for name in names:
        config.parameters.pop(name, None)
        if name in other.parameters:
            config.parameters[name].CopyFrom(other.parameters[name])


def _images_dims(info: DetectorInfo) -> list[int]:
    width, height = info.input_size_wh
    return [height, width, 3]


def _parameters(config: pb.ModelConfig, **values: object) -> None:
    for name, value in values.items():
        config.parameters[name].string_value = str(value)


def _thresholds(config: pb.ModelConfig) -> None:
    for name, data_type in _THRESHOLDS.items():
        config.input.add(name=name, data_type=data_type, dims=[1], optional=True)


def _detections(config: pb.ModelConfig) -> None:
    for name, (data_type, dims) in _DETECTIONS.items():
        config.output.add(name=name, data_type=data_type, dims=dims)


def _preprocess(name: str, info: DetectorInfo) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, backend="preprocess_backend")
    config.input.add(name="IMAGE", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="images", data_type=pb.TYPE_UINT8, dims=_images_dims(info))
    config.output.add(name="geometry", data_type=pb.TYPE_FP32, dims=[6])
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=2)
    limit_queue(config, timeout_us=500_000)
    fit: PreprocessSettings = info.preprocess_settings()
    _parameters(config, NICE=10)  # of its processes: those of the later steps go first
    _parameters(config, resize=fit.resize, max_bytes=fit.max_bytes, max_pixels=fit.max_pixels)
    if fit.resize == "letterbox":
        _parameters(config, anchor=fit.anchor, pad_value=fit.pad_value)
    warmup = config.model_warmup.add(name="grey image", batch_size=1).inputs["IMAGE"]
    warmup.data_type, warmup.input_data_file = pb.TYPE_STRING, WARMUP_IMAGE
    warmup.dims.append(1)
    return config


def _detector(name: str, info: DetectorInfo, engine: str) -> pb.ModelConfig:
    backend = ENGINES[engine]
    config = pb.ModelConfig(name=name, backend=engine)
    if engine != "onnxruntime":  # whose own default it is
        config.default_model_filename = backend.file
    batch = [] if backend.batched else [-1]
    images = [*batch, *_images_dims(info)]
    config.input.add(name="images", data_type=pb.TYPE_UINT8, dims=images)
    config.output.add(
        name="candidates",
        data_type=pb.TYPE_FP32,
        dims=[*batch, CANDIDATES, 6],
        label_filename="labels.txt" if info.labels else "",
    )
    _parameters(config, **backend.parameters)
    warmup = config.model_warmup.add(name="grey image", batch_size=1).inputs["images"]
    warmup.data_type, warmup.zero_data = pb.TYPE_UINT8, True
    warmup.dims.extend([1, *images[1:]] if batch else images)
    return config


def _postprocess(name: str, info: DetectorInfo) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, backend="python")
    config.input.add(name="candidates", data_type=pb.TYPE_FP32, dims=[CANDIDATES, 6])
    config.input.add(name="geometry", data_type=pb.TYPE_FP32, dims=[6])
    _thresholds(config)
    _detections(config)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=2)
    _parameters(
        config,
        score_threshold=SelectionSettings().score_threshold,
        iou_threshold=info.iou_threshold,
    )
    warmup = config.model_warmup.add(name="no candidates", batch_size=1)
    for tensor in config.input[:2]:
        value = warmup.inputs[tensor.name]
        value.data_type, value.zero_data = tensor.data_type, True
        value.dims.extend(tensor.dims)
    return config


def _ensemble(names: ModelNames, info: DetectorInfo) -> pb.ModelConfig:
    config = pb.ModelConfig(name=names.ensemble, platform="ensemble")
    config.input.add(name="IMAGE", data_type=pb.TYPE_STRING, dims=[1])
    _thresholds(config)
    _detections(config)
    for model, inputs, outputs in (
        (names.preprocess, ["IMAGE"], ["images", "geometry"]),
        (names.detector, ["images"], ["candidates"]),
        (names.postprocess, ["candidates", "geometry", *_THRESHOLDS], list(_DETECTIONS)),
    ):
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        for tensor in inputs:
            step.input_map[tensor] = tensor
        for tensor in outputs:
            step.output_map[tensor] = tensor
    config.response_cache.enable = True
    if info.labels:
        for label in info.labels:
            if not isinstance(label, str) or len(f"{label}|".splitlines()) != 1:
                raise RepositoryError(f"a label must be one line of text, got {label!r}")
        _parameters(config, labels=json.dumps(info.labels))
    return config
