"""From a PyTorch module to an ONNX file that is proven to be the same detector.

PyTorch is an extra: of these modules only `compare`, `errors` and `samples` do without it.
"""

from __future__ import annotations

from exporting.errors import ExportError

__all__ = ["ExportError"]
