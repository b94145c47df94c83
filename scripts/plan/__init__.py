"""Building TensorRT plans: one detector in ONNX, one plan and the record of how it came to be."""

from plan.builder import MODULES, PlanBuilder, Tensor
from plan.errors import PlanError
from plan.options import HARDWARE_LEVELS, PlanOptions
from plan.record import PlanRecord
from plan.serving import check_config

__all__ = [
    "HARDWARE_LEVELS",
    "MODULES",
    "PlanBuilder",
    "PlanError",
    "PlanOptions",
    "PlanRecord",
    "Tensor",
    "check_config",
]
