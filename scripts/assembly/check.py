"""Whether a real Triton serves an ensemble."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detection_client import DetectionClient, DetectionClientError
from detserve.repository import DetectorRepository, RepositoryError
from local_server import ServerError, TritonServer
from local_server._triton import backend_names, find_triton

__all__ = ["NotCheckableError", "check_served"]


class NotCheckableError(RepositoryError):
    """There is no Triton here that could serve the ensemble."""


def check_served(repository: Path, ensemble: str) -> None:
    """Start a Triton of our own on the repository and detect on an image of noise.

    Args:
        repository: The model repository; it is not changed.
        ensemble: Name of the ensemble.

    Raises:
        NotCheckableError: There is no Triton here, or it lacks the detector's backend.
        RepositoryError: Triton does not load a model, or does not answer.
    """
    backend = DetectorRepository(repository, ensemble).backend
    try:
        triton = find_triton()
    except ServerError as error:
        raise NotCheckableError(str(error)) from error
    if backend not in backend_names(triton):
        raise NotCheckableError(f"the Triton here has no backend {backend}")
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    try:
        with (
            TritonServer(
                repository, http_port=0, grpc_port=0, metrics_port=0, health_port=0, supervise=False
            ) as server,
            DetectionClient(server.grpc_url, model=ensemble) as client,
        ):
            client.detect_batch([noise, noise[:120]], score_threshold=0.0)
    except (ServerError, DetectionClientError) as error:
        raise RepositoryError(f"Triton does not serve {ensemble}: {error}") from error
