"""Read the TensorFlow.js GraphModel format: nodes, attributes and weights.

A `model.json` holds the graph (`modelTopology`, a TensorFlow GraphDef as JSON) and the manifest of
the weights, whose bytes lie in shards beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Node = dict[str, Any]

# Attributes that carry a dtype already known, or a hint for a runtime.
IGNORED_ATTRIBUTES = {"T", "N", "Index", "Tshape", "Tidx", "out_type", "use_cudnn_on_gpu", "U"}


class TfjsImportError(ValueError):
    """The model cannot be imported."""


class UnsupportedNodeError(TfjsImportError):
    """A node's op, attribute or use is not known to the importer."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(f"node {node['name']!r} ({node['op']}): {reason}")
        self.node_name: str = node["name"]


def load_graph(directory: Path) -> tuple[dict[str, Node], dict[str, Array]]:
    """Read a GraphModel.

    Args:
        directory: Folder of `model.json` and its weight shards.

    Returns:
        Nodes by name, and weights by name.

    Raises:
        TfjsImportError: The folder holds no readable GraphModel.
    """
    try:
        model = json.loads((directory / "model.json").read_text(encoding="utf-8"))
        nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
        manifest = model["weightsManifest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TfjsImportError(f"no GraphModel in {directory}: {error!r}") from error
    return nodes, load_weights(manifest, directory)


def load_weights(manifest: Sequence[Mapping[str, Any]], directory: Path) -> dict[str, Array]:
    """Read the weights of a TensorFlow.js manifest, dequantised as TensorFlow.js does.

    Args:
        manifest: The `weightsManifest` of a `model.json`.
        directory: Folder of the weight shards.

    Returns:
        Weight name to array: float32, int32 or bool.

    Raises:
        TfjsImportError: A shard is missing, too short or too long, or a dtype is unknown.
    """
    weights: dict[str, Array] = {}
    for group in manifest:
        try:
            data = b"".join((directory / path).read_bytes() for path in group["paths"])
        except OSError as error:
            raise TfjsImportError(f"cannot read a weight shard: {error}") from error
        offset = 0
        for entry in group["weights"]:
            name, dtype, quantization = entry["name"], entry["dtype"], entry.get("quantization")
            stored = quantization["dtype"] if quantization else dtype
            known = ("uint8", "uint16", "float16") if quantization else ("float32", "int32", "bool")
            if stored not in known or dtype not in ("float32", "int32", "bool"):
                raise TfjsImportError(f"weight {name!r}: unknown dtype {dtype} stored as {stored}")
            count = int(np.prod(entry["shape"], dtype=np.int64))
            size = count * np.dtype(stored).itemsize
            if offset + size > len(data):
                raise TfjsImportError(f"weight {name!r}: the shards end before it does")
            little_endian = np.dtype(stored).newbyteorder("<")
            array: Array = np.frombuffer(data, little_endian, count, offset).astype(stored)
            offset += size
            if quantization and stored != "float16":  # TensorFlow.js computes this in doubles
                array = array * float(quantization["scale"]) + float(quantization["min"])
                if dtype == "int32":
                    array = np.floor(array + 0.5)  # JavaScript's Math.round
            weights[name] = array.astype(dtype).reshape(entry["shape"])
        if offset != len(data):
            raise TfjsImportError(f"{len(data) - offset} bytes of the shards belong to no weight")
    return weights


def attributes(node: Node, read: set[str], required: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a node's attributes; any that is not in `read` must be as `required` says."""
    decoded: dict[str, Any] = {}
    for name, value in (node.get("attr") or {}).items():
        if name in IGNORED_ATTRIBUTES or name.startswith("_"):
            continue
        if "s" in value:  # strings are stored as lists of bytes
            decoded[name] = bytes(value["s"]).decode()
        elif "i" in value:
            decoded[name] = int(value["i"])
        elif "f" in value or "b" in value:
            decoded[name] = value.get("f", value.get("b"))
        elif "list" in value:
            decoded[name] = [int(item) for item in value["list"].get("i") or ()]
        if name in read and name in decoded:
            continue
        if name not in required or decoded.get(name) != required[name]:
            raise UnsupportedNodeError(node, f"attribute {name}={decoded.get(name, value)!r}")
    return decoded
