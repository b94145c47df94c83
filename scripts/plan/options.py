"""What a plan is built with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plan.errors import PlanError

__all__ = ["HARDWARE_LEVELS", "PlanOptions", "output_error", "plan_suffix"]

HARDWARE_LEVELS = ("none", "ampere-plus", "same-compute-capability")
# TensorRT-RTX accepts these calls and ignores them, or lacks what they need.
_NOT_IN_RTX = {
    "timing_cache": "--timing-cache",
    "hardware_compatibility": "--hardware-compatible",
    "version_compatible": "--version-compatible",
}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of a build.

    Attributes:
        batch: Least, most usual and greatest batch of the plan's profile.
        workspace_mib: Scratch memory that layers may use, in MiB; None leaves it to TensorRT,
            which allows all of the GPU's.
        timing_cache: File of measured kernel timings to read and to extend.
        sparsity: Let TensorRT choose sparse kernels where weights are 2:4 sparse.
        version_compatible: Let later TensorRTs of the same major version run the plan.
        hardware_compatibility: One of `HARDWARE_LEVELS`: which other GPUs may run the plan.
        optimization_level: How long to search for kernels, 0 (shortest) to 5; None is TensorRT's
            default.
    """

    batch: tuple[int, int, int] = (1, 4, 8)
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    sparsity: bool = False
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    optimization_level: int | None = None

    def check(self, module: str) -> None:
        """See that the values make sense and that the module has what they ask for.

        Raises:
            PlanError: One does not; the message says what would.
        """
        least, usual, greatest = self.batch
        if not 1 <= least <= usual <= greatest:
            raise PlanError(
                f"the profile's batches must be 1 or more and not decrease, as 1 4 8 do; got"
                f" {least} {usual} {greatest}"
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise PlanError(f"the workspace must be 1 MiB or more, got {self.workspace_mib}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise PlanError(f"the optimization level is 0 to 5, got {self.optimization_level}")
        if self.hardware_compatibility not in HARDWARE_LEVELS:
            raise PlanError(
                f"there is no hardware compatibility {self.hardware_compatibility!r}; there are"
                f" {', '.join(HARDWARE_LEVELS)}"
            )
        if module == "tensorrt_rtx":
            for name, flag in _NOT_IN_RTX.items():
                if getattr(self, name) != getattr(PlanOptions, name):
                    raise PlanError(f"TensorRT-RTX has no {flag}: leave it out, or use TensorRT")

    def to_json(self) -> dict[str, Any]:
        """The options as JSON knows them; the timing cache changes no plan's meaning."""
        options = asdict(self)
        del options["timing_cache"]
        return options | {"batch": list(self.batch)}


def plan_suffix(module: str) -> str:
    """How the files end that a module writes."""
    return ".rtx" if module == "tensorrt_rtx" else ".plan"


def output_error(output: Path, module: str) -> str | None:
    """What is wrong with the name of a plan's file; None if nothing is.

    Triton and `TensorRTEngine` load `model.plan` by TensorRT, which cannot read what TensorRT-RTX
    writes; so the two never have the same name.
    """
    suffix = plan_suffix(module)
    if output.suffix == suffix:
        return None
    product = "TensorRT-RTX" if module == "tensorrt_rtx" else "TensorRT"
    return (
        f"{output.name} is no name for what {product} builds, which {product} alone can run: the"
        f" name has to end in {suffix}"
    )
