"""Detect on four real photos with a real Triton, and show what was found."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console

from detection_client import (
    DetectionClient,
    DetectionClientError,
    ImageReport,
    draw,
    render_table,
)
from local_server import ServerError, TritonServer
from photos import PHOTOS, photo_path

ROOT = Path(__file__).resolve().parent.parent


def detect_and_save(client: DetectionClient, name: str, output: Path) -> ImageReport:
    """Detect on one photo and save it with its boxes."""
    path = photo_path(name)
    start = time.perf_counter()
    detections = client.detect(path)
    milliseconds = (time.perf_counter() - start) * 1e3
    with Image.open(path) as image:
        draw(image, detections).save(output / f"{name}.jpg", quality=92)
        return ImageReport(path.name, detections, milliseconds, image.size)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    args = parser.parse_args(argv)
    console = Console()
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        with console.status("Starting Triton and waiting for a real inference of every model"):
            server = TritonServer(args.model_repository)
            start = time.perf_counter()
            server.start()
        try:
            console.print(
                f"Triton answers after {time.perf_counter() - start:.1f} s:"
                f" {server.grpc_url} and {server.http_url}",
                highlight=False,
            )
            for name, default in server.ports.moved.items():
                console.print(f"Port {default} is taken: {name} has {getattr(server.ports, name)}.")
            with DetectionClient(server.grpc_url) as client:
                client.model_info()  # connects, so that no photo's time counts that
                reports = [detect_and_save(client, name, args.output) for name in PHOTOS]
        finally:
            with console.status("Stopping Triton"):
                server.stop()
    except KeyboardInterrupt:
        print("Interrupted; Triton is stopped.", file=sys.stderr)
        return 130
    except (ServerError, DetectionClientError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = args.output / "detections.json"
    results.write_text(json.dumps([report.to_dict() for report in reports], indent=2) + "\n")
    console.print(render_table(reports))
    console.print(
        f"Annotated pictures and {results.name} are in {args.output}/.\n"
        "Next: make serve, and in another terminal .venv/bin/detect with pictures of your own, or\n"
        f"  .venv/bin/detect {os.path.relpath(photo_path('coffee'))}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
