"""What Triton says when it refuses, in gRPC and in HTTP -> this package's errors.

The table below was found by asking Triton 2.51; both protocols carry the same messages.

| what happened | gRPC status | HTTP | message has |
|---|---|---|---|
| bad image, shape, dtype, option | INVALID_ARGUMENT | 400 | |
| no such model or version | NOT_FOUND | 404 | is not found |
| model or a step of it unloaded | NOT_FOUND | 404 | has no available versions |
| queue full | UNAVAILABLE | 503 | Exceeds maximum queue size |
| waited in a queue past its timeout | UNAVAILABLE | 503 | Request timeout expired |
| Python process of a model died | INTERNAL | 500 | Stub process '...' is not healthy |
| exception in a Python model | INTERNAL | 500 | a traceback |
| endpoint restricted | UNAVAILABLE | 403 | This protocol (HTTP: API) is restricted |
| nobody listens, server died | UNAVAILABLE | no answer | |
| server ends with the request in its hands | CANCELLED | no answer | |
"""

from __future__ import annotations

import re

from detection_client._errors import (
    AccessDeniedError,
    DeadlineExceededError,
    DetectionClientError,
    InvalidInputError,
    ModelNotFoundError,
    QueueFullError,
    ServerError,
    ServerUnavailableError,
)

__all__ = ["cannot_connect", "error_from_status", "no_answer"]

_GRPC_NAMES = {
    "400": "INVALID_ARGUMENT",
    "401": "UNAUTHENTICATED",
    "403": "PERMISSION_DENIED",
    "404": "NOT_FOUND",
    "407": "UNAUTHENTICATED",
    "408": "DEADLINE_EXCEEDED",
    "413": "INVALID_ARGUMENT",
    "429": "RESOURCE_EXHAUSTED",
    "501": "UNIMPLEMENTED",
    "502": "UNAVAILABLE",
    "503": "UNAVAILABLE",
    "504": "DEADLINE_EXCEEDED",
}
_ERRORS: dict[str, type[DetectionClientError]] = {
    "INVALID_ARGUMENT": InvalidInputError,
    "OUT_OF_RANGE": InvalidInputError,
    "NOT_FOUND": ModelNotFoundError,
    "UNAUTHENTICATED": AccessDeniedError,
    "PERMISSION_DENIED": AccessDeniedError,
    "RESOURCE_EXHAUSTED": QueueFullError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "UNAVAILABLE": ServerUnavailableError,
    "CANCELLED": DetectionClientError,
}
_TIMEOUT_EXPIRED = "timeout expired"  # the request's own, or that of the model's queue
# Looked for before the status, which does not tell these apart.
_MESSAGES: tuple[tuple[str, type[DetectionClientError]], ...] = (
    ("exceeds maximum queue size", QueueFullError),
    (_TIMEOUT_EXPIRED, QueueFullError),
    ("protocol is restricted", AccessDeniedError),
    ("message larger than max", InvalidInputError),
)
# Triton's own additions to a message, of no use to a caller.
_PREFIXES = re.compile(r"^(?:in ensemble '[^']*', |\[request id: [^\]]*\] ?)+")
_NOT_TRITONS = "an exception occurred in the client while decoding the response"
_NOT_CONNECTED = re.compile(
    r"^(?:failed to connect to all addresses|connections to all backends failing"
    r"|errors resolving|dns resolution failed)"
    r".*?([^:\]]+)\]?$",
    re.IGNORECASE,
)
_BY_THIS_CLIENT = re.compile("channel closed|locally cancelled", re.IGNORECASE)
_DEAD_STUB = re.compile(r"stub process '?([\w-]*?)(?:_\d+)*'? is not healthy", re.IGNORECASE)


def error_from_status(
    status: str | None, message: str | None, *, url: str, timeout: float, elapsed: float = 0
) -> DetectionClientError:
    """The error for a request that was refused.

    Args:
        status: ``"StatusCode.UNAVAILABLE"``, ``"503"``, or None where there was none.
        message: The server's words, or those of the protocol's library.
        url: The server asked, for the message.
        timeout: Seconds that the call was allowed.
        elapsed: Seconds that it took: the server may be the first to notice that time is up.
    """
    status = (status or "").removeprefix("StatusCode.")
    name = _GRPC_NAMES.get(status, status)
    text = _PREFIXES.sub("", message or "").strip()
    if text.startswith(_NOT_TRITONS):  # a proxy's page, or another server altogether
        text = f"HTTP status {status} and an answer that is not Triton's"
    if name == "DEADLINE_EXCEEDED" or (_TIMEOUT_EXPIRED in text.lower() and elapsed >= timeout):
        return no_answer(url, timeout)
    if dead := _DEAD_STUB.search(text):
        return ServerUnavailableError(
            f"the server at {url} has lost its process for the model {dead[1]!r}"
            " and has not replaced it yet"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return cannot_connect(url, "its certificate is not trusted")
    if reason := _NOT_CONNECTED.search(text):
        text = reason[1].strip().lower()
        hint = ""
        if text == "socket closed":
            wants = "does it want a client's certificate, or " if url.startswith("grpcs") else ""
            hint = f": {wants}is it another port?"
        return cannot_connect(url, text + hint)
    if "has no available versions" in text:
        return ServerUnavailableError(f"the server at {url} has not loaded the model: {text}")
    if name == "CANCELLED" and not _BY_THIS_CLIENT.search(text):
        return ServerUnavailableError(f"the server at {url} has ended the call")
    kind = next((kind for part, kind in _MESSAGES if part in text.lower()), None)
    kind = kind or _ERRORS.get(name, ServerError)
    if kind is InvalidInputError:
        return InvalidInputError(text)
    if kind is QueueFullError:
        return QueueFullError(f"the server at {url} is busy: {text}")
    if kind is DeadlineExceededError:
        return DeadlineExceededError(f"{url}: {text}")
    if kind is ServerError:
        first_line = text.partition("\n")[0][:200] or "no reason given"
        return ServerError(
            f"the server at {url} failed on its own, its log may tell more: {first_line}"
        )
    return kind(f"{url}: {text or name}")


def no_answer(url: str, timeout: float) -> DeadlineExceededError:
    """The error for a call that has used up its time."""
    seconds = f"{timeout:.3g}" if timeout < 1000 else f"{timeout:.0f}"
    return DeadlineExceededError(f"no answer from {url} within {seconds} s")


def cannot_connect(url: str, reason: str) -> ServerUnavailableError:
    """The error for a connection that could not be made."""
    return ServerUnavailableError(f"cannot connect to {url}: {reason.lower()}")
