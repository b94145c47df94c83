"""Folding: from a model as it was exported to one of the pipeline's contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

import coco
from contract import DetectorInfo
from families import batch, recognise
from families.base import Match, Settings
from families.graph import DetectorImportError, GraphBuilder
from families.pixels import add_pixels, constants_of
from families.raw import RawModel, opset_of, prepare

NORMALISED_INSIDE = {"mean": (0, 0, 0), "std": (1, 1, 1)}


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a user says of a model; None leaves it to the family and the file.

    Attributes:
        family: Key of `families.FAMILIES`.
        source: Where the model comes from.
        labels: Names of the classes: of all columns, or of the kept ones; of all if both are as
            many.
        classes: The class columns that are kept, in the order that they are to have.
        input_size_wh: Width and height, for models that take any.
        order: See `families.base.Settings`, as for the following.
        mean: Of the channels in the model's order, for pixels of 0 to 255.
        std: Likewise.
        resize: `letterbox` or `stretch`.
        anchor: `center` or `top-left`.
        pad_value: 0 to 255.
        iou_threshold: 0 to 1.
    """

    family: str | None = None
    source: str = ""
    labels: tuple[str, ...] | None = None
    classes: tuple[int, ...] | None = None
    input_size_wh: tuple[int, int] | None = None
    order: Literal["rgb", "bgr"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: Literal["letterbox", "stretch"] | None = None
    anchor: Literal["center", "top-left"] | None = None
    pad_value: int | None = None
    iou_threshold: float | None = None

    def given(self) -> dict[str, Any]:
        """The settings that the user gave, by name."""
        names = Settings.__dataclass_fields__
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A detector of the pipeline's contract, and what it was made of.

    Attributes:
        model: The detector.
        info: Its metadata.
        raw: The model as it was exported.
        settings: What was assumed or given of its input.
        decoder: The raw outputs to `candidates` alone, to check the whole against.
        summary: What was found, assumed and proven: heading and text.
    """

    model: onnx.ModelProto
    info: DetectorInfo
    raw: RawModel
    settings: Settings
    decoder: onnx.ModelProto
    summary: dict[str, str] = field(default_factory=dict)


def fold(exported: onnx.ModelProto, options: ImportOptions | None = None) -> Folded:
    """Turn a detector as it was exported into one that serves the pipeline's contract.

    Args:
        exported: The model with its family's raw outputs; it is not changed.
        options: What the user says of it.

    Returns:
        A checked model. The same arguments give the same bytes.

    Raises:
        DetectorImportError: The family is unknown, the graph is not what the family expects, or
            its batch cannot be made dynamic.
    """
    options = options or ImportOptions()
    try:
        onnx.checker.check_model(exported)
    except onnx.checker.ValidationError as error:
        raise DetectorImportError(f"the model is not valid ONNX: {error}") from error
    raw = prepare(exported, options.input_size_wh)
    class_count = len(options.labels) if options.labels else None
    family, match = recognise(raw, options.family, class_count)
    inside = NORMALISED_INSIDE if raw.dtype == TensorProto.UINT8 else {}
    settings = replace(match.settings, **(inside | options.given()))
    labels, columns, labels_from = _classes(raw, match, options)
    dynamic = batch.make_dynamic(raw)
    difference = batch.prove(raw, dynamic)

    graph = GraphBuilder(opset_of(raw.model))
    graph.constants = constants_of(dynamic)
    graph.nodes = [node for node in dynamic.graph.node if node.output[0] not in graph.constants]
    add_pixels(graph, raw, settings)
    match.decode(graph, columns)
    model = graph.detector(raw.model, raw.size_wh[::-1])
    info = replace(
        DetectorInfo.of(model), family=family.name, source=options.source, labels=labels,
        resize=settings.resize, anchor=settings.anchor, pad_value=settings.pad_value,
        iou_threshold=settings.iou_threshold,
    )  # fmt: skip
    info.write_to(model)
    onnx.checker.check_model(model, full_check=True)
    how = "as named" if options.family else "recognised"
    summary = {
        "family": f"{family.name}, {how} ({match.reason})",
        **_described_input(raw, settings, options),
        "classes": labels_from,
        "batch": _described_batch(raw, difference),
    }
    decoder = _decoder(raw, match, columns)
    return Folded(
        model=model, info=info, raw=raw, settings=settings, decoder=decoder, summary=summary
    )


def _decoder(raw: RawModel, match: Match, columns: Sequence[int] | None) -> onnx.ModelProto:
    graph = GraphBuilder(opset_of(raw.model))
    match.decode(graph, columns)
    inputs = [
        helper.make_tensor_value_info(
            output.name, helper.np_dtype_to_tensor_dtype(output.value.dtype),
            ["N", *output.shape[1:]],
        )
        for output in raw.outputs
        if any(output.name in node.input for node in graph.nodes)
    ]  # fmt: skip
    return graph.model(raw.model, inputs)


def _classes(
    raw: RawModel, match: Match, options: ImportOptions
) -> tuple[tuple[str, ...], tuple[int, ...] | None, str]:
    """Names of the classes, columns that are kept (None: all), and where that comes from."""
    count, columns, written = match.classes, options.classes, raw.names()
    if columns is not None and count is not None and max(columns) >= count:
        raise DetectorImportError(f"class {max(columns)}: the model has classes 0 to {count - 1}")
    names, origin = written, "named in the file"
    if options.labels:
        names, origin = options.labels, "as given"
        if columns is not None and len(names) == len(columns):
            # Without the number of all, names are of all if every kept column has its own.
            total = count or len(written) or max(len(names), max(columns) + 1)
            if len(names) < total:
                return names, columns, _described_classes(names, "as given for those kept")
            origin += " for all classes in the model's order"
    if count in COCO_COLUMNS and len(names) in (0, len(coco.LABELS)):
        origin = origin if names else "COCO's, assumed"
        in_use = dict(zip(COCO_COLUMNS[count], names or coco.LABELS, strict=True))
        names = tuple(in_use.get(column, f"class {column}") for column in range(count))
        if columns is None:
            columns = COCO_COLUMNS[count]
            origin += f", of {count} columns those whose COCO ids are in use"
    elif not names and count is None:
        return (), columns, "unknown: name them with --labels"
    elif count == len(coco.LABELS) and not names:
        names, origin = coco.LABELS, "COCO's, assumed"
    elif count is not None and not names:
        names = tuple(f"class {index}" for index in range(count))
        origin = "unknown: name them with --labels"
    if columns is not None and max(columns) >= len(names):
        raise DetectorImportError(f"class {max(columns)} is kept, but {len(names)} are named")
    if count is not None and len(names) != count:
        raise DetectorImportError(
            f"there are {len(names)} labels ({origin}), but the model has {count} classes"
        )
    if columns is not None:
        names = tuple(names[column] for column in columns)
    return names, columns, _described_classes(names, origin)


def _described_classes(names: Sequence[str], origin: str) -> str:
    return f"{len(names)}, {origin} ({names[0]} ... {names[-1]})"


# Heads that number their classes by COCO's ids, without and with column 0, which no class has.
COCO_COLUMNS = {90: tuple(number - 1 for number in coco.CATEGORY_IDS), 91: coco.CATEGORY_IDS}


def _described_input(raw: RawModel, settings: Settings, options: ImportOptions) -> dict[str, str]:
    width, height = raw.size_wh
    given = options.given()

    def told(name: str, text: str) -> str:
        return text if name in given else f"{text} (assumed)"

    def three(values: tuple[float, float, float]) -> str:
        return f"{values[0]:g}" if len(set(values)) == 1 else ",".join(f"{v:g}" for v in values)

    fit: str = settings.resize
    if fit == "letterbox":
        fit += f" to the {settings.anchor}, padded with {settings.pad_value}"
    kind = TensorProto.DataType.Name(raw.dtype)
    return {
        "input": f"{width}x{height} {kind} {raw.layout}",
        "order": told("order", settings.order),
        "pixels": f"x from 0 to 255, less {told('mean', three(settings.mean))},"
        f" over {told('std', three(settings.std))}",
        "resize": told("resize", fit),
        "overlaps": told(
            "iou_threshold",
            f"suppressed above an IoU of {settings.iou_threshold:g}"
            if settings.iou_threshold < 1
            else "not suppressed",
        ),
    }


def _described_batch(raw: RawModel, difference: float) -> str:
    how = f"made dynamic from {raw.batch}" if raw.batch else "dynamic as exported"
    return f"{how}; outputs of a batch equal those of single images within {difference:.0e}"
