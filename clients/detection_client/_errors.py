"""One tree of errors that tells the caller what to do, whatever the protocol."""

from __future__ import annotations

__all__ = [
    "AccessDeniedError",
    "DeadlineExceededError",
    "DetectionClientError",
    "InvalidInputError",
    "ModelNotFoundError",
    "QueueFullError",
    "ServerError",
    "ServerUnavailableError",
]


class DetectionClientError(Exception):
    """The base of every error that this package raises on purpose.

    Attributes:
        index: The image's place in the sequence given to ``detect_batch``, else None.
    """

    index: int | None = None

    @property
    def message(self) -> str:
        """What went wrong, in words."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        # TimeoutError, an OSError, would print itself in its own way.
        return self.message


class InvalidInputError(DetectionClientError, ValueError):
    """The image or an option is at fault: correct it, do not send it again as it is."""


class ServerUnavailableError(DetectionClientError):
    """The server cannot be reached or is not ready: see that it runs, or try again later."""


class QueueFullError(DetectionClientError):
    """The server has more work than it takes: send less, or try again after a pause."""


class DeadlineExceededError(DetectionClientError, TimeoutError):
    """No answer within the timeout: allow more time, or find out what keeps the server."""


class ModelNotFoundError(DetectionClientError):
    """The server has no model of this name: check ``model=`` and the model repository."""


class AccessDeniedError(DetectionClientError):
    """The server, or a proxy before it, wants credentials: pass them with ``headers=``."""


class ServerError(DetectionClientError):
    """The server failed on its own: its log tells why, and its operator can mend it."""
