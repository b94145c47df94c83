"""Users that ask Triton over the HTTP inference protocol, and what REST users need of HTTP too."""
# mypy: disable-error-code="misc"

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError
from locust import tag, task

from detection_client import DeadlineExceededError, ServerUnavailableError
from detection_client._status import error_from_status
from loadtest.images import TestImage
from loadtest.users.base import DetectionUser

__all__ = ["HttpUser", "HttpUserBase"]

NO_MODEL = "detserve-empty-call"
_CONNECTIONS = 1024
_HEADER_LENGTH = "Inference-Header-Content-Length"


class HttpUserBase(DetectionUser):
    """Posts with geventhttpclient, which Locust's FastHttpUser and tritonclient.http use too.

    Without them in between, a body is built once an image, and the latency of an open load counts
    from the arrival.
    """

    abstract = True

    def post(
        self, server: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """The status and the body of the answer.

        Raises:
            DeadlineExceededError: None came in time.
            ServerUnavailableError: None came at all.
        """
        client = self.shared(f"http {server}", lambda: self._connect(server))
        try:
            response = client.post(path, body, headers)
            return int(response.status_code), bytes(response.read())
        except TimeoutError:
            seconds = self.options.request_timeout
            raise DeadlineExceededError(f"no answer from {server} within {seconds:g} s") from None
        except (OSError, HTTPParseError) as error:
            raise ServerUnavailableError(f"no answer from {server}: {error}") from None

    def _connect(self, server: str) -> Any:
        seconds = self.options.request_timeout
        return HTTPClient.from_url(
            server,
            concurrency=_CONNECTIONS,
            connection_timeout=seconds,
            network_timeout=seconds,
        )


class HttpUser(HttpUserBase):
    """Asks with the image behind a JSON header (Triton's binary tensor extension)."""

    abstract = True
    protocol = "http"

    @tag("http")  # type: ignore[untyped-decorator]
    @task  # type: ignore[untyped-decorator]
    def detect(self) -> None:
        """One image."""
        self.request("detect", self._ask)

    def empty_call(self, image: TestImage) -> bool:
        """An image for a model that does not exist."""
        status, _ = self._infer(NO_MODEL, image)
        return status == 404 or status == 400

    def _ask(self, images: list[TestImage]) -> int:
        status, body = self._infer(self.options.model, images[0])
        if status != 200:
            raise error_from_status(
                str(status),
                _message(body),
                url=self.options.http_server,
                timeout=self.options.request_timeout,
            )
        return len(body)

    def _infer(self, model: str, image: TestImage) -> tuple[int, bytes]:
        header, body = self.shared(f"body {id(image)}", lambda: _body(image))
        headers = {_HEADER_LENGTH: header, "Content-Type": "application/octet-stream"}
        return self.post(self.options.http_server, f"/v2/models/{model}/infer", body, headers)


def _body(image: TestImage) -> tuple[str, bytes]:
    size = {"binary_data_size": len(image.data) + 4}
    tensor = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": size}
    described = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    header = json.dumps(described).encode()
    return str(len(header)), header + struct.pack("<I", len(image.data)) + image.data


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
