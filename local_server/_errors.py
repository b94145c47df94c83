"""What can go wrong when a server is set up and started."""

from __future__ import annotations


class ServerError(RuntimeError):
    """Triton is missing, cannot be set up, or does not start; the message says what to do."""


class PortBusyError(ServerError):
    """A port that was asked for is taken."""


class PortRaceError(ServerError):
    """Somebody took a port between our choosing it and Triton's binding it: worth another try."""
