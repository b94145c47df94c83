"""Users that ask Triton over gRPC."""
# mypy: disable-error-code="misc"

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.grpc as triton
from locust import tag, task
from tritonclient.utils import InferenceServerException

from detection_client._status import error_from_status
from loadtest.images import TestImage
from loadtest.users.base import DetectionUser

__all__ = ["GrpcUser"]

NO_MODEL = "detserve-empty-call"


class GrpcUser(DetectionUser):
    """Asks with tensors that are built once an image: the load generator does as little as it can.

    The users of a process share a channel, as HTTP/2 is meant.
    """

    abstract = True
    protocol = "grpc"

    @tag("grpc")  # type: ignore[untyped-decorator]
    @task  # type: ignore[untyped-decorator]
    def detect(self) -> None:
        """One image."""
        self.request("detect", self._ask)

    def empty_call(self, image: TestImage) -> bool:
        """An image for a model that does not exist."""
        try:
            self._infer(NO_MODEL, image)
        except InferenceServerException as error:
            return str(error.status()) == "StatusCode.NOT_FOUND"
        return False

    def _ask(self, images: list[TestImage]) -> int:
        timeout = self.options.request_timeout
        try:
            answer = self._infer(self.options.model, images[0])
        except InferenceServerException as error:
            url = self.options.grpc_server
            raise error_from_status(
                error.status(), error.message(), url=url, timeout=timeout
            ) from None
        return int(answer.get_response().ByteSize())

    def _infer(self, model: str, image: TestImage) -> Any:
        client = self.shared(f"grpc {self.options.grpc_server}", self._connect)
        inputs = self.shared(f"tensor {id(image)}", lambda: _tensors(image))
        return client.infer(model, inputs, client_timeout=self.options.request_timeout)

    def _connect(self) -> Any:
        scheme, _, authority = self.options.grpc_server.rpartition("://")
        return triton.InferenceServerClient(authority, ssl=scheme == "grpcs")


def _tensors(image: TestImage) -> list[Any]:
    tensor = triton.InferInput("IMAGE", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image.data]], dtype=np.object_))
    return [tensor]
