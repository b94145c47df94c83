"""What the blocking client and the asyncio one share: options, checks, plans."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from detection_client._address import ServerAddress, join_addresses, parse_addresses
from detection_client._errors import DetectionClientError, InvalidInputError
from detection_client._flows import Flows, Outcome
from detection_client._images import ArrayEncoding, ImageInput
from detection_client._tensors import checked_headers
from detection_client._tls import TlsFiles
from detserve.detections import Detections

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_RETRIES",
    "DEFAULT_TIMEOUT_S",
    "BaseClient",
    "fatal_error",
    "finish",
    "list_images",
    "plan_chunks",
]

LONGEST_TIMEOUT_S = 1_000_000  # what gRPC and asyncio count in ends somewhere above

DEFAULT_MODEL = "detection"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_RETRIES = 3


class BaseClient:
    """The settings of a client.

    Args:
        url: ``grpc://host:8001`` or ``http://host:8000``; ``grpcs`` and ``https`` with TLS.
            Several servers, which must serve the same, as ``grpc://a:8001,b:8001`` or as a
            sequence of addresses: requests are shared out to those that work.
        model: The name of the model to ask.
        timeout: Seconds that a call may take, its retries included, unless the call says
            otherwise.
        retries: How many times a request is sent again; see `DetectionClient` for when.
        headers: Headers (gRPC: metadata) to send with every request, such as credentials.
        concurrency: Most requests that one ``detect_batch`` has under way at once.
        array_encoding: How arrays are encoded for sending: ``"bmp"``, ``"png"`` (lossless both)
            or ``"jpeg"``; see `encode_array`.
        ca_file: A PEM file of the authorities to trust with TLS, in place of the system's.
        cert_file: A PEM file of the client's certificate, where the server asks for one.
        key_file: A PEM file of that certificate's private key, without a password.
        shared_memory: Whether large images (256 KB and more) go to a server on this machine, at
            localhost, in shared memory. That is quicker for uncompressed ones; the server has to
            allow it, and to have the same /dev/shm.

    Raises:
        InvalidInputError: The URL or an option is not one of those above.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        model: str = DEFAULT_MODEL,
        timeout: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
        concurrency: int = 4,
        array_encoding: ArrayEncoding = "bmp",
        ca_file: str | os.PathLike[str] = "",
        cert_file: str | os.PathLike[str] = "",
        key_file: str | os.PathLike[str] = "",
        shared_memory: bool = False,
    ) -> None:
        self._addresses = self._parse_addresses(url)
        self._timeout = _checked_timeout(timeout)
        if not model:
            raise InvalidInputError("model must be a model's name")
        if retries < 0:
            raise InvalidInputError(f"retries must not be negative, got {retries}")
        if concurrency < 1:
            raise InvalidInputError(f"concurrency must be at least 1, got {concurrency}")
        if array_encoding not in ("bmp", "png", "jpeg"):
            raise InvalidInputError(
                f"array_encoding must be 'bmp', 'png' or 'jpeg', not {array_encoding!r}"
            )
        self._tls = TlsFiles.checked(
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            uses_tls=self._addresses[0].uses_tls,
        )
        if shared_memory and len(self._addresses) > 1:
            raise InvalidInputError(
                f"shared_memory is for one server on this machine, not for {self.url}"
            )
        if shared_memory and not self._addresses[0].is_local:
            raise InvalidInputError(
                f"shared_memory needs a server on this machine, at localhost, not {self.url}"
            )
        self._shared_memory = shared_memory
        self._headers = checked_headers(headers or {})
        self._concurrency = concurrency
        self._closed = False
        self._lock = threading.Lock()
        self._flows = Flows(self.url, model, retries, array_encoding)

    @staticmethod
    def _parse_addresses(url: str | Sequence[str]) -> tuple[ServerAddress, ...]:
        return parse_addresses(url)

    @property
    def url(self) -> str:
        """The server's address, with its port; of several, ``grpc://a:8001,b:8001``."""
        return join_addresses(self._addresses)

    @property
    def model(self) -> str:
        """The name of the model that is asked."""
        return self._flows.model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, model={self.model!r})"

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client has been closed")

    def _timeout_of(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else _checked_timeout(timeout)


def _checked_timeout(timeout: float) -> float:
    if not (isinstance(timeout, (int, float)) and 0 < timeout <= LONGEST_TIMEOUT_S):
        raise InvalidInputError(
            f"timeout must be a number of seconds above 0 and up to {LONGEST_TIMEOUT_S:,},"
            f" not {timeout!r}"
        )
    return float(timeout)


def list_images(images: Iterable[ImageInput]) -> list[ImageInput]:
    """The images of a batch; a single one is a mistake, and would be taken apart.

    Raises:
        InvalidInputError: It is one path or one encoded image.
    """
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)):
        raise InvalidInputError("detect_batch takes several images, such as a list of paths")
    return list(images)


def plan_chunks(
    images: Sequence[ImageInput], max_batch_size: int
) -> list[list[tuple[int, ImageInput]]]:
    """Share images out to requests: as few as can be, and of nearly the same size."""
    numbered = list(enumerate(images))
    count = math.ceil(len(numbered) / max_batch_size)
    bounds = [len(numbered) * index // count for index in range(count + 1)] if count else [0]
    return [numbered[start:end] for start, end in pairwise(bounds)]


def fatal_error(outcomes: Iterable[tuple[int, Outcome]]) -> DetectionClientError | None:
    """An error that the images still to come would meet as well."""
    for _, outcome in outcomes:
        if isinstance(outcome, DetectionClientError) and not isinstance(outcome, InvalidInputError):
            return outcome
    return None


def finish(
    outcomes: Iterable[tuple[int, Outcome]], *, return_exceptions: bool
) -> list[Detections] | list[Outcome]:
    """Put the outcomes in the order of the images, and raise the first error unless told not to.

    Raises:
        DetectionClientError: Of the first image that failed; it counts the others.
    """
    ordered = [outcome for _, outcome in sorted(outcomes, key=lambda pair: pair[0])]
    if return_exceptions:
        return ordered
    errors = [outcome for outcome in ordered if isinstance(outcome, DetectionClientError)]
    if not errors:
        return [outcome for outcome in ordered if isinstance(outcome, Detections)]
    error, others = errors[0], len(errors) - 1
    if others:
        noun = "image" if others == 1 else "images"
        error.args = (f"{error.message} (and {others} other {noun} failed as well)",)
    raise error
