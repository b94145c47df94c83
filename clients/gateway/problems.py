"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from detection_client import (
    AccessDeniedError,
    DeadlineExceededError,
    DetectionClientError,
    InvalidInputError,
    QueueFullError,
    ServerError,
    ServerUnavailableError,
)

__all__ = ["Problem", "problem_from_client"]

CONTENT_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it so
    """A request that is not answered as asked, and why.

    Args:
        status: The HTTP status.
        detail: What was wrong and what would be right, for the client's developer.
        retry_after: Seconds after which to try again.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def to_dict(self) -> dict[str, Any]:
        """The members of the problem."""
        title = "Client Closed Request" if self.status == 499 else HTTPStatus(self.status).phrase
        return {
            "type": "about:blank",
            "title": title,
            "status": self.status,
            "detail": self.detail,
        }

    def response(self) -> Response:
        """The problem as an answer."""
        return Response(
            json.dumps(self.to_dict()), self.status, self.headers, media_type=CONTENT_TYPE
        )


def problem_from_client(error: DetectionClientError) -> Problem:
    """The problem that an error of the client library is.

    The messages of those that are not the caller's fault are left out: they tell addresses.
    """
    if isinstance(error, InvalidInputError):
        return Problem(400, error.message)
    if isinstance(error, DeadlineExceededError):
        return Problem(504, "the detector has not answered in time: allow more, or try again later")
    if isinstance(error, QueueFullError):
        return Problem(503, "the detector has more work than it takes", retry_after=1)
    if isinstance(error, ServerUnavailableError):
        return Problem(503, "the detector cannot be reached or is not ready", retry_after=2)
    if isinstance(error, AccessDeniedError):
        return Problem(503, "the detector refuses this gateway", retry_after=30)
    if isinstance(error, ServerError):
        return Problem(503, "the detector failed on its own", retry_after=2)
    return Problem(503, "the detector does not serve this model at the moment", retry_after=5)
