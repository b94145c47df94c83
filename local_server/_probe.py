"""A real inference of any model, its input made up from its configuration."""

from __future__ import annotations

import itertools
import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from local_server._http import Connection

_SIZES = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2,
    "INT32": 4, "INT64": 8, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
_IMAGE_INPUT = "IMAGE"
_IMAGE_SIDE = 8
_COLOURS = itertools.count(1)  # of all probes: one may take the place of another


def png(colour: int, side: int = _IMAGE_SIDE) -> bytes:
    """Encode a small image of one colour.

    Args:
        colour: The colour, 0xRRGGBB.
        side: Width and height in pixels.

    Returns:
        A PNG file.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = (b"\0" + colour.to_bytes(3, "big") * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class Probe:
    """Asks one model for an inference.

    Attributes:
        config: The model's configuration, as Triton answers it: complete.
        model: Its name.
        parts: The models it is composed of, if it is an ensemble.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.model: str = config["name"]
        steps = config.get("ensemble_scheduling", {}).get("step", [])
        self.parts: list[str] = [step["model_name"] for step in steps]
        self._batched = int(config.get("max_batch_size", 0)) > 0
        self._inputs = [
            tensor for tensor in config.get("input", []) if not tensor.get("optional", False)
        ]
        # The smallest output is enough of an answer.
        outputs = sorted(config.get("output", []), key=lambda tensor: math.prod(_shape(tensor)))
        self._output = outputs[0]["name"] if outputs else None

    def request(self) -> tuple[bytes, dict[str, str]]:
        """Make up a request: zeros, and an image where one is wanted.

        No two images are alike, so that no answer comes from the response cache.

        Returns:
            The body and the headers of an HTTP inference request.
        """
        inputs: list[dict[str, Any]] = []
        data: list[bytes] = []
        for tensor in self._inputs:
            kind = tensor["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES")
            shape = _shape(tensor)
            content = self._content(tensor["name"], kind, math.prod(shape))
            inputs.append(
                {
                    "name": tensor["name"],
                    "datatype": kind,
                    "shape": [1, *shape] if self._batched else shape,
                    "parameters": {"binary_data_size": len(content)},
                }
            )
            data.append(content)
        document: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
        if self._output is not None:
            document["outputs"] = [{"name": self._output, "parameters": {"binary_data": True}}]
        header = json.dumps(document).encode()
        return header + b"".join(data), {"Inference-Header-Content-Length": str(len(header))}

    def ask(self, connection: Connection, timeout: float) -> None:
        """Ask for one inference and throw the answer away.

        Args:
            connection: To Triton.
            timeout: How long to wait for the answer, in seconds.

        Raises:
            TritonError: If the answer is an error.
            OSError: If there is no answer.
        """
        body, headers = self.request()
        connection.request("POST", f"/v2/models/{self.model}/infer", body, headers, timeout=timeout)

    def _content(self, name: str, kind: str, count: int) -> bytes:
        if kind != "BYTES":
            return bytes(_SIZES[kind] * count)
        value = png(next(_COLOURS) % 0xFFFFFF) if name == _IMAGE_INPUT else b""
        return (struct.pack("<I", len(value)) + value) * count


def _shape(tensor: Mapping[str, Any]) -> list[int]:
    # The API writes 64-bit integers as strings. Variable dimensions are asked with one element.
    dims = tensor.get("reshape", {}).get("shape") if not tensor.get("dims") else tensor["dims"]
    return [max(1, int(dim)) for dim in dims or [1]]
