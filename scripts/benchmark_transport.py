"""Measure a request over gRPC, over HTTP, and with its image in shared memory, on one machine.

The four ways take turns request by request, one at a time, so that a machine whose speed drifts
spoils no ratio. The images are a JPEG and uncompressed arrays, which the client sends as BMP.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from detection_client import DetectionClient, encode_array
from local_server import TritonServer
from machine import processor_name
from photos import jpeg


def images() -> dict[str, bytes]:
    """What is sent, by its name."""
    photo = jpeg("motorcycle_left")
    with Image.open(io.BytesIO(photo)) as picture:
        rgb = picture.convert("RGB")
    arrays = {f"{w} x {h} BMP": np.asarray(rgb.resize((w, h))) for w, h in SIZES}
    return {"JPEG": photo, **{name: encode_array(array) for name, array in arrays.items()}}


SIZES = ((640, 480), (1280, 720), (1920, 1080))


def measure(server: TritonServer, data: bytes, requests: int, progress: Any) -> dict[str, float]:
    """Median milliseconds of each way."""
    ways = {
        "gRPC": (server.grpc_url, False),
        "gRPC, shared memory": (server.grpc_url, True),
        "HTTP": (server.http_url, False),
        "HTTP, shared memory": (server.http_url, True),
    }
    clients = {
        way: DetectionClient(url, shared_memory=shared) for way, (url, shared) in ways.items()
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    try:
        for number in range(requests + 3):
            for way, client in clients.items():
                start = time.perf_counter()
                client.detect(data)
                if number >= 3:  # the first ones connect, and make the memory
                    taken[way].append((time.perf_counter() - start) * 1e3)
            progress.update()
    finally:
        for client in clients.values():
            client.close()
    return {way: statistics.median(times) for way, times in taken.items()}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--requests", type=int, default=100, help="of each way and image")
    options = parser.parse_args()
    pictures = images()
    steps = len(pictures) * (options.requests + 3)
    with (
        TritonServer(options.model_repository, allow_shared_memory=True) as server,
        tqdm(total=steps, desc="benchmark", leave=False, disable=None) as progress,
    ):
        rows = {
            name: measure(server, data, options.requests, progress)
            for name, data in pictures.items()
        }
    table = Table(title="Median ms of a request, one at a time")
    for column in ("image", "kB", *next(iter(rows.values()))):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        cells = (f"{milliseconds:.1f}" for milliseconds in row.values())
        table.add_row(name, f"{len(pictures[name]) / 1000:.0f}", *cells)
    console = Console()
    console.print(processor_name())
    console.print(table)


if __name__ == "__main__":
    main()
