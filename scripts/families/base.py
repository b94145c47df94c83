"""What a family is: how its models are recognised, and how their outputs become candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from families.graph import GraphBuilder
from families.raw import RawModel

Triple = tuple[float, float, float]

ZERO: Triple = (0.0, 0.0, 0.0)
UNIT: Triple = (255.0, 255.0, 255.0)  # divides pixels to [0, 1]
# Of ImageNet's pixels, as torchvision's models have them, times 255.
IMAGENET_MEAN: Triple = (123.675, 116.28, 103.53)
IMAGENET_STD: Triple = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a model's file does not tell, as the family's own package has it.

    Attributes:
        order: Order of the channels that the model takes.
        mean: Subtracted from pixels of 0 to 255, in that order.
        std: What the difference is divided by.
        resize: How images are fitted; see `detserve.imaging.PreprocessSettings`.
        anchor: Where a letterboxed image lies.
        pad_value: Grey of its padding.
        iou_threshold: Overlap above which postprocessing suppresses; 1 if it need not.
    """

    order: Literal["rgb", "bgr"] = "rgb"
    mean: Triple = ZERO
    std: Triple = UNIT
    resize: Literal["letterbox", "stretch"] = "letterbox"
    anchor: Literal["center", "top-left"] = "center"
    pad_value: int = 114
    iou_threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Match:
    """What a family sees in a model.

    Attributes:
        reason: What the model was recognised by.
        classes: Columns of class scores; None if the outputs do not tell.
        settings: What is assumed of this model.
        decode: Appends the nodes from the raw outputs to `candidates`, for the class columns that
            are kept, in their order; None keeps all.
    """

    reason: str
    classes: int | None
    settings: Settings
    decode: Callable[[GraphBuilder, Sequence[int] | None], None]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One way to lay out a detector's outputs.

    Attributes:
        name: What the command line and the metadata call it.
        models: Whose it is.
        outputs: The shapes that fit, for messages.
        match: Looks at a model; the flag says that the user named the family, so that what is
            only unlikely will do.
    """

    name: str
    models: str
    outputs: str
    match: Callable[[RawModel, bool], Match | None]
