"""Making a detector smaller and faster: graph clean-up, float16, int8 and pruning."""

from optimization.errors import OptimizationError

__all__ = ["OptimizationError"]
