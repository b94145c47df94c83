"""What Triton says -> the errors, in both protocols.

The statuses and messages are those that Triton 2.51 gave, word for word; the tests in
tests/server provoke most of them again.
"""

from __future__ import annotations

import pytest

from detection_client import (
    AccessDeniedError,
    DeadlineExceededError,
    DetectionClientError,
    InvalidInputError,
    ModelNotFoundError,
    QueueFullError,
    ServerError,
    ServerUnavailableError,
)
from detection_client._status import error_from_status

URL = "grpc://box:8001"
TRACEBACK = (
    "in ensemble 'detection', Failed to process the request(s) for model 'postprocess_0_0',"
    " message: KeyError: 'geometry'\n\nAt:\n  /models/postprocess/1/model.py(48): _outputs\n"
)
CASES: list[tuple[str, str, str, type[DetectionClientError], str]] = [
    (
        "INVALID_ARGUMENT",
        "400",
        "in ensemble 'detection', the image is empty (0 bytes)",
        InvalidInputError,
        "the image is empty (0 bytes)",
    ),
    (
        "INVALID_ARGUMENT",
        "400",
        "[request id: <id_unknown>] inference request batch-size must be <= 16 for 'detection'",
        InvalidInputError,
        "inference request batch-size must be <= 16 for 'detection'",
    ),
    (
        "NOT_FOUND",
        "404",
        "Request for unknown model: 'nope' is not found",
        ModelNotFoundError,
        f"{URL}: Request for unknown model: 'nope' is not found",
    ),
    (
        "NOT_FOUND",
        "404",
        "Request for unknown model: 'detection' has no available versions",
        ServerUnavailableError,
        f"the server at {URL} has not loaded the model:"
        " Request for unknown model: 'detection' has no available versions",
    ),
    (
        "UNAVAILABLE",
        "503",
        "in ensemble 'detection', [request id: <id_unknown>] Exceeds maximum queue size",
        QueueFullError,
        f"the server at {URL} is busy: Exceeds maximum queue size",
    ),
    (
        "UNAVAILABLE",
        "503",
        "in ensemble 'detection', [request id: <id_unknown>] Request timeout expired",
        QueueFullError,
        f"the server at {URL} is busy: Request timeout expired",
    ),
    (
        "INTERNAL",
        "500",
        "in ensemble 'detection', Stub process 'postprocess_0_0' is not healthy.",
        ServerUnavailableError,
        f"the server at {URL} has lost its process for the model 'postprocess'"
        " and has not replaced it yet",
    ),
    (
        "INTERNAL",
        "500",
        TRACEBACK,
        ServerError,
        f"the server at {URL} failed on its own, its log may tell more: Failed to process the"
        " request(s) for model 'postprocess_0_0', message: KeyError: 'geometry'",
    ),
    (
        "UNAVAILABLE",
        "403",
        "This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'",
        AccessDeniedError,
        f"{URL}: This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'",
    ),
    ("DEADLINE_EXCEEDED", "504", "", DeadlineExceededError, f"no answer from {URL} within 2.5 s"),
]


@pytest.mark.parametrize(("grpc_status", "http_status", "message", "kind", "text"), CASES)
def test_both_protocols_give_the_same(
    grpc_status: str,
    http_status: str,
    message: str,
    kind: type[DetectionClientError],
    text: str,
) -> None:
    for status in (f"StatusCode.{grpc_status}", http_status):
        error = error_from_status(status, message, url=URL, timeout=2.5)
        assert type(error) is kind
        assert str(error) == text


@pytest.mark.parametrize(
    ("status", "message", "kind", "says"),
    [
        (
            "StatusCode.UNAVAILABLE",
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1:"
            " Failed to connect to remote host: Connection refused",
            ServerUnavailableError,
            f"cannot connect to {URL}: connection refused",
        ),
        (
            "StatusCode.UNAVAILABLE",
            "errors resolving no.such.host.invalid:1: [field:hostname lookup error:address lookup"
            " failed for no.such.host.invalid:1: Domain name not found]",
            ServerUnavailableError,
            f"cannot connect to {URL}: domain name not found",
        ),
        (
            "StatusCode.UNAVAILABLE",
            "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:8000:"
            " Socket closed",
            ServerUnavailableError,
            "is it another port",
        ),
        (
            "StatusCode.UNAVAILABLE",
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Tls"
            " handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL"
            " routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: self signed certificate: OK",
            ServerUnavailableError,
            f"cannot connect to {URL}: its certificate is not trusted",
        ),
        ("StatusCode.UNAVAILABLE", "Stream removed (Socket closed)", ServerUnavailableError, URL),
        ("StatusCode.CANCELLED", "Channel closed!", DetectionClientError, "closed"),
        ("StatusCode.CANCELLED", "Locally cancelled by application!", DetectionClientError, URL),
        ("StatusCode.CANCELLED", "CANCELLED", ServerUnavailableError, "has ended the call"),
        ("StatusCode.RESOURCE_EXHAUSTED", "rate exceeded", QueueFullError, "rate exceeded"),
        (
            "StatusCode.RESOURCE_EXHAUSTED",
            "Received message larger than max (5 vs. 4)",
            InvalidInputError,
            "larger",
        ),
        ("429", "slow down", QueueFullError, "slow down"),
        ("413", "too large", InvalidInputError, "too large"),
        ("401", "", AccessDeniedError, "UNAUTHENTICATED"),
        ("502", "", ServerUnavailableError, URL),
        ("418", "teapot", ServerError, "teapot"),
        (
            "503",
            "an exception occurred in the client while decoding the response: x\nresponse: <html>",
            ServerUnavailableError,
            "HTTP status 503 and an answer that is not Triton's",
        ),
        (None, None, ServerError, "no reason given"),
    ],
)
def test_others(
    status: str | None, message: str | None, kind: type[DetectionClientError], says: str
) -> None:
    error = error_from_status(status, message, url=URL, timeout=1)
    assert type(error) is kind
    assert says in str(error)
    assert "<html>" not in str(error)


@pytest.mark.parametrize("status", ["StatusCode.UNAVAILABLE", "503"])
def test_a_server_may_be_the_first_to_see_that_time_is_up(status: str) -> None:
    said = "in ensemble 'detection', [request id: <id_unknown>] Request timeout expired"
    for elapsed, kind in ((0.499, QueueFullError), (0.5, DeadlineExceededError)):
        error = error_from_status(status, said, url=URL, timeout=0.5, elapsed=elapsed)
        assert type(error) is kind
    full = "Exceeds maximum queue size"
    error = error_from_status(status, full, url=URL, timeout=0.5, elapsed=0.5)
    assert type(error) is QueueFullError


def test_the_tree_fits_into_pythons() -> None:
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(DeadlineExceededError, TimeoutError)
    for kind in (InvalidInputError, DeadlineExceededError, ServerError, QueueFullError):
        assert issubclass(kind, DetectionClientError)
        assert str(kind("in words")) == "in words"
