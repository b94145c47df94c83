"""A detector as it was exported: what goes in, what comes out."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from detserve.engines import ORT_ERRORS
from families.graph import PREFIX, Array, DetectorImportError, nodes_of, rename

OLDEST_OPSET = 11
OPSET = 17  # to which models older than 13 are raised
IMAGE_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8)


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output as a run on one image gave it.

    Attributes:
        name: Its name.
        value: The array; its first dimension is the batch, 1.
    """

    name: str
    value: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.value.shape)


@dataclass(frozen=True, kw_only=True)
class RawModel:
    """A model ready to be folded.

    Attributes:
        model: The model, with a fixed input size.
        image: Name of its image input.
        layout: `NCHW` or `NHWC`.
        dtype: ONNX element type of the image.
        size_wh: Width and height of the image in pixels.
        batch: Images that the file takes at once; 0 if any number.
        outputs: The outputs, run on one image of noise in [0, 1] (in [0, 255] if `uint8`).
        metadata: What the exporter wrote into the file.
    """

    model: onnx.ModelProto
    image: str
    layout: str
    dtype: int
    size_wh: tuple[int, int]
    batch: int
    outputs: tuple[Output, ...]
    metadata: Mapping[str, str]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image as the model takes it."""
        width, height = self.size_wh
        return (3, height, width) if self.layout == "NCHW" else (height, width, 3)

    def of_rank(self, rank: int) -> list[Output]:
        """The outputs of that many dimensions."""
        return [output for output in self.outputs if len(output.shape) == rank]

    def names(self) -> tuple[str, ...]:
        """The names of the classes that the exporter wrote into the file, if it did."""
        try:
            names = ast.literal_eval(self.metadata.get("names", "{}"))
        except (SyntaxError, ValueError):
            return ()
        if isinstance(names, dict) and sorted(names) == list(range(len(names))):
            names = [names[index] for index in range(len(names))]
        if not isinstance(names, list):
            return ()
        found = tuple(map(str, names))
        # A model that nobody named the classes of has their numbers.
        return () if found == tuple(map(str, range(len(found)))) else found


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, with the weights that lie beside it.

    Raises:
        DetectorImportError: It cannot be read, or is no valid ONNX model.
    """
    try:
        # Not by the name's suffix, which may stand for ONNX's text forms.
        model = onnx.load(path, format="protobuf")
        if not model.graph.node:
            raise DetectorImportError(f"{path} is no ONNX model: it has no nodes")
        onnx.checker.check_model(model)
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise DetectorImportError(f"{path} cannot be read as an ONNX model: {error}") from error
    return model


def prepare(exported: onnx.ModelProto, input_size_wh: tuple[int, int] | None = None) -> RawModel:
    """Look at a model as it was exported, and bring it to one form.

    Args:
        exported: The model; it is not changed.
        input_size_wh: Width and height of the input, for models that take any.

    Raises:
        DetectorImportError: It is no detector of images, or does not run.
    """
    if [info.name for info in exported.graph.output] == ["candidates"]:
        raise DetectorImportError(
            "the model gives `candidates`: it has been imported already, and can be used as it is"
        )
    _refuse_suppression(exported)
    metadata = {prop.key: prop.value for prop in exported.metadata_props}
    if metadata.get("task", "detect") != "detect":
        raise DetectorImportError(
            f"the model is for the task {metadata['task']!r} by its metadata, not for detection"
        )
    model = _raised(exported)
    image = _image_input(model)
    layout, size_wh = _fit(image, input_size_wh)
    _fix_size_inputs(model, image.name, size_wh)
    for name in ("images", "candidates"):  # the contract's
        rename(model.graph, name, f"{PREFIX}raw/{name}")
    tensor = image.type.tensor_type
    draft = RawModel(
        model=model, image=image.name, layout=layout, dtype=tensor.elem_type, size_wh=size_wh,
        batch=tensor.shape.dim[0].dim_value, outputs=(), metadata=metadata,
    )  # fmt: skip
    noise = image_noise(draft, max(1, draft.batch))
    outputs = run(model, {image.name: noise})
    for name, value in outputs.items():
        if draft.batch > 1 and len(value) != draft.batch:
            raise DetectorImportError(f"output {name!r} {list(value.shape)} has no batch dimension")
    one = draft.batch > 1
    seen = (Output(name=n, value=v[:1] if one else v) for n, v in outputs.items())
    return RawModel(**{**vars(draft), "outputs": tuple(seen)})


def image_noise(raw: RawModel, count: int, seed: int = 0) -> Array:
    """Random images as the raw model takes them: 0 to 1, or 0 to 255 if `uint8`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *raw.image_shape), np.uint8)
    if raw.dtype == TensorProto.UINT8:
        return pixels
    return (pixels / np.float32(255)).astype(helper.tensor_dtype_to_np_dtype(raw.dtype))


def run(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run a model once in ONNX Runtime; return its outputs by name.

    Raises:
        DetectorImportError: It does not load or run; the message has ONNX Runtime's reason.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised, not printed
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))
    except ORT_ERRORS as error:
        raise DetectorImportError(f"the model does not run in ONNX Runtime: {error}") from error


def _refuse_suppression(model: onnx.ModelProto) -> None:
    for node in nodes_of(model.graph):
        if node.op_type == "NonMaxSuppression" or "NMS" in node.op_type:
            raise DetectorImportError(
                f"the model suppresses overlaps itself (node {node.name or node.output[0]!r},"
                f" {node.op_type}), which postprocessing does with thresholds of each request:"
                " export it without (nms=False, or a model that ends before its post-processing)"
            )


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators that a model is in; 0 if it does not say."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _raised(exported: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in an opset that the nodes to come can use."""
    opset = opset_of(exported)
    if opset < OLDEST_OPSET:
        raise DetectorImportError(
            f"the model is in opset {opset}: export it again in {OLDEST_OPSET} or newer"
        )
    if opset < 13:
        try:
            return onnx.version_converter.convert_version(exported, OPSET)
        except (RuntimeError, ValueError) as error:
            raise DetectorImportError(
                f"the model cannot be raised from opset {opset} to {OPSET}, export it again in"
                f" {OPSET}: {error}"
            ) from error
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    return model


def _image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    initializers = {item.name for item in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in initializers]
    images = [info for info in inputs if len(info.type.tensor_type.shape.dim) == 4]
    found = "; ".join(_described(info) for info in inputs)
    if len(images) != 1:
        raise DetectorImportError(
            f"the model must have one image input [N, 3, H, W] or [N, H, W, 3]; it has {found}"
        )
    image: onnx.ValueInfoProto = images[0]
    if image.type.tensor_type.elem_type not in IMAGE_TYPES:
        raise DetectorImportError(f"images must be FLOAT, FLOAT16 or UINT8; the model has {found}")
    return image


def _described(info: onnx.ValueInfoProto) -> str:
    tensor = info.type.tensor_type
    dims = [dim.dim_param or dim.dim_value or "?" for dim in tensor.shape.dim]
    return (
        f"{info.name} {TensorProto.DataType.Name(tensor.elem_type)} [{', '.join(map(str, dims))}]"
    )


def _fit(
    image: onnx.ValueInfoProto, input_size_wh: tuple[int, int] | None
) -> tuple[str, tuple[int, int]]:
    """Fix the size of the image input; return its layout, and width and height."""
    dims = image.type.tensor_type.shape.dim
    layout, places = "NCHW", (dims[3], dims[2])
    channels = dims[1]
    if dims[3].dim_value == 3 and dims[1].dim_value != 3:
        layout, channels, places = "NHWC", dims[3], (dims[2], dims[1])
    if channels.dim_value not in (0, 3):
        raise DetectorImportError(f"images must have 3 channels; the model has {_described(image)}")
    channels.dim_value = 3
    width, height = (place.dim_value for place in places)
    if input_size_wh is None and not (width and height):
        raise DetectorImportError(
            f"the model takes images of any size ({_described(image)}): choose with --input-size"
        )
    wanted = input_size_wh or (width, height)
    if (width or wanted[0], height or wanted[1]) != wanted:
        raise DetectorImportError(
            f"the model takes images of {width}x{height} pixels, not {wanted[0]}x{wanted[1]}:"
            " export it in the size you want"
        )
    for place, size in zip(places, wanted, strict=True):
        place.dim_value = size
    return layout, wanted


def _fix_size_inputs(model: onnx.ModelProto, image: str, size_wh: tuple[int, int]) -> None:
    """Make an input `orig_target_sizes` [N, 2] a constant: boxes are wanted in input pixels."""
    initializers = {item.name for item in model.graph.initializer}
    for info in list(model.graph.input):
        if info.name == image or info.name in initializers:
            continue
        tensor = info.type.tensor_type
        if len(tensor.shape.dim) != 2 or tensor.shape.dim[1].dim_value != 2:
            raise DetectorImportError(
                f"the model wants {_described(info)} beside the image; of inputs other than the"
                " image only the size [N, 2] that boxes are scaled to is known"
            )
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        size = numpy_helper.from_array(np.array([size_wh], dtype), info.name)
        model.graph.input.remove(info)
        model.graph.initializer.append(size)


def described_outputs(raw: RawModel) -> str:
    """The outputs with types and shapes, for messages."""
    parts = []
    for output in raw.outputs:
        shape: Any = ["N", *output.shape[1:]] if output.shape else []
        parts.append(f"{output.name} {output.value.dtype} [{', '.join(map(str, shape))}]")
    return "; ".join(parts)
