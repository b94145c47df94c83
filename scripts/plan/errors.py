"""What goes wrong when a plan is built, in words: TensorRT's own and the cause behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["PlanError", "explain", "without_noise"]


class PlanError(RuntimeError):
    """No plan can be built, or one cannot be used; the message says why and what to do."""


# TensorRT names the place in its own code rather than the fault in the model.
_CAUSES = (
    (
        r"input has type Int32 but must have type",
        "a bias is quantised to int32, which TensorRT does not take: leave biases in float"
        " (QuantizeBias=False), as scripts/optimize.py does",
    ),
    (
        r"shiftIsAllZeros|[Zz]ero point is not supported|UINT8_AND_ASYMMETRIC|scalar zero.?point",
        "the model is quantised asymmetrically: TensorRT takes int8 with all zero points 0"
        " (ActivationSymmetric and WeightSymmetric), as scripts/optimize.py makes it",
    ),
    (
        r"Plugin not found|No importer registered",
        "TensorRT has no such operator: export the model without it, or write it in standard"
        " ONNX operators",
    ),
    (
        r"Failed to open file|convertOnnxWeights",
        "the weights lie in a file beside the model that is missing or damaged: keep the two"
        " together",
    ),
    (
        r"Failed to parse the ONNX model",
        "this is no ONNX file, or only a part of one",
    ),
    (
        r"static dimensions that don't match",
        "the model's batch is fixed, so no profile over batches fits it: export it with a dynamic"
        " batch (scripts/import_detector.py makes it so where the graph allows)",
    ),
    (
        r"no optimization profile has been defined|missing dimensions in profile",
        "an input has a dynamic dimension that no optimization profile covers; a detector's only"
        " one is the batch",
    ),
    (
        r"MIN<=OPT<=MAX",
        "the profile's batches must not decrease: --batch MIN OPT MAX",
    ),
    (
        r"OutOfMemory|workspace memory|maxScratchSize",
        "TensorRT may not use enough memory: raise --workspace-mb, or leave it out",
    ),
    (
        r"Could not find any implementation",
        "TensorRT has no kernel for this operator and type on this GPU: raise --workspace-mb if"
        " it is set, or build from a model in another precision",
    ),
    (
        r"libnvinfer_lean",
        "a version-compatible plan needs TensorRT's lean runtime, libnvinfer_lean, which is not"
        " installed",
    ),
    (
        r"CUDA initialization failure|cudaError",
        "CUDA finds no GPU or no driver: run it where the GPU is, as docker compose run plan does",
    ),
)

# A machine without a driver adds this to every error, whatever the error is about.
_NOISE = re.compile(r"\bcheckMacros\.cpp::catchCudaError\b")


def without_noise(text: str) -> str:
    """Drop the lines that a missing driver adds to errors of another cause."""
    return "\n".join(line for line in text.strip().splitlines() if not _NOISE.search(line))


def explain(what: str, said: Iterable[str]) -> PlanError:
    """The error for a failure of TensorRT's.

    Args:
        what: What failed.
        said: What TensorRT said of it.
    """
    said = list(said)
    said = list(dict.fromkeys(filter(None, map(without_noise, said)))) or said
    causes = [cause for pattern, cause in _CAUSES if re.search(pattern, "\n".join(said))]
    # The first that fits: the table goes from the particular to the general.
    lines = [what + (f": {causes[0]}" if causes else "")]
    lines += ["TensorRT says: " + text.replace("\n", "\n  ") for text in said]
    if not said:
        lines.append("TensorRT gives no reason")
    return PlanError("\n  ".join(lines))
