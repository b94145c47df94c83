"""The detector families, and how a model's is recognised."""

from __future__ import annotations

from families import detr, end2end, ssd, yolov5, yolov8, yolox
from families.base import Family, Match
from families.graph import DetectorImportError
from families.raw import RawModel, described_outputs

__all__ = ["FAMILIES", "DetectorImportError", "Family", "recognise"]

FAMILIES = {
    family.name: family
    for family in (
        yolox.FAMILY, yolov5.FAMILY, yolov8.FAMILY, ssd.FAMILY, ssd.TORCHVISION, detr.DETR,
        detr.RTDETR, end2end.FAMILY,
    )
}  # fmt: skip


def recognise(
    raw: RawModel, name: str | None = None, class_count: int | None = None
) -> tuple[Family, Match]:
    """Tell the family of a model by its outputs.

    Args:
        raw: The model.
        name: Key of `FAMILIES`, if the user named it.
        class_count: How many classes the user says there are, which settles some doubts.

    Raises:
        DetectorImportError: No family fits, or several, or not the named one; the message says
            what the model has and what would fit.
    """
    if name is not None and name not in FAMILIES:
        raise DetectorImportError(f"unknown family {name!r}: choose from {sorted(FAMILIES)}")
    tried = list(FAMILIES.values()) if name is None else [FAMILIES[name]]
    found = [
        (family, match) for family in tried
        if (match := family.match(raw, name is not None)) is not None
    ]  # fmt: skip
    if len(found) > 1 and class_count is not None:
        found = [pair for pair in found if pair[1].classes in (class_count, None)] or found
    if len(found) == 1:
        return found[0]
    has = f"the model (input {raw.size_wh[0]}x{raw.size_wh[1]}) has {described_outputs(raw)}"
    if found:
        fitting = "".join(f"\n  --family {family.name:8} {match.reason}" for family, match in found)
        raise DetectorImportError(
            f"{has}: more than one family fits; name the right one, or give --labels:{fitting}"
        )
    wanted = "".join(f"\n  {f.name:16} {f.outputs} ({f.models})" for f in tried)
    raise DetectorImportError(f"{has}: this fits no family. What fits:{wanted}")
