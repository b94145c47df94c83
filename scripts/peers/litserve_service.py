"""A LitServe service: decode, predict and encode, in worker processes that share a queue."""

# No `from __future__ import annotations`: LitServe hands the annotation of a request to FastAPI.

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import Body, HTTPException
from litserve import LitAPI, LitServer

from detserve.decoding import ImageError
from detserve.imaging import Geometry
from peers.service import Parts, as_json, end_with_parent, service_arguments

__all__ = ["DetectionAPI"]

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


class DetectionAPI(LitAPI):  # type: ignore[misc]  # LitServe has no types
    """The pipeline in LitServe's steps, for single requests and for batches."""

    def __init__(self, repository: Path, threads: int | None, **options: Any) -> None:
        """Say what `setup` is to load, in each worker.

        Args:
            repository: The model repository.
            threads: As `Parts.load` takes it.
            options: LitServe's own.
        """
        super().__init__(**options)
        self._repository = repository
        self._threads = threads

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the detector."""
        self._parts = Parts.load(self._repository, self._threads)

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="application/octet-stream")]
    ) -> tuple[UInt8Array, Geometry]:
        """The body of the request is the encoded image."""
        try:
            return self._parts.decode(request)
        except ImageError as error:
            raise HTTPException(400, str(error)) from error

    def batch(self, inputs: list[tuple[UInt8Array, Geometry]]) -> tuple[UInt8Array, list[Geometry]]:
        """Put decoded images together."""
        return np.stack([pixels for pixels, _ in inputs]), [geometry for _, geometry in inputs]

    def predict(self, decoded: Any) -> Any:
        """Run the detector on an image, or on a batch, of which a list comes back."""
        pixels, geometry = decoded
        if pixels.ndim == 3:
            return self._parts.infer(pixels[None])[0], geometry
        return list(zip(self._parts.infer(pixels), geometry, strict=True))

    def encode_response(self, output: tuple[Float32Array, Geometry]) -> dict[str, Any]:
        """Suppress overlaps and answer all detections."""
        return as_json(self._parts.select(*output))


def main() -> None:
    """Serve until this process is ended."""
    parser = service_arguments(__doc__)
    parser.add_argument("--workers", type=int, default=1, help="worker processes")
    parser.add_argument("--api-servers", type=int, help="HTTP processes (default: as many)")
    parser.add_argument("--fast-queue", action="store_true", help="answers go over ZeroMQ")
    parser.add_argument("--batch", type=int, default=1, help="images that are detected at once")
    parser.add_argument("--batch-timeout", type=float, default=0.0, help="seconds to wait for them")
    arguments = parser.parse_args()
    end_with_parent()
    api = DetectionAPI(
        arguments.model_repository,
        arguments.threads,
        max_batch_size=arguments.batch,
        batch_timeout=arguments.batch_timeout,
    )
    server = LitServer(
        api,
        accelerator="cpu",
        workers_per_device=arguments.workers,
        fast_queue=arguments.fast_queue,
    )
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        num_api_servers=arguments.api_servers,
        log_level="error",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
