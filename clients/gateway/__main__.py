"""The command ``detserve-gateway``."""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType

import uvicorn

from detection_client import DetectionClientError
from gateway.app import make_app
from gateway.health import Health
from gateway.settings import Settings, parse_settings

__all__ = ["main"]


class _Server(uvicorn.Server):
    """Tells the application when it is to end, before uvicorn closes the doors."""

    def __init__(self, config: uvicorn.Config, health: Health) -> None:
        super().__init__(config)
        self._health = health

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note that the end is near."""
        self._health.draining = True
        super().handle_exit(sig, frame)
        # uvicorn would raise the signal once more at the end: a requested end is a success.
        self._captured_signals.clear()


def main() -> None:
    """Run the gateway until it is told to end."""
    settings = parse_settings()
    try:
        app = make_app(settings)
    except (ValueError, DetectionClientError) as error:
        sys.exit(f"detserve-gateway: {error}")
    assert app.health is not None
    try:
        listener = _listen(settings)
    except OSError as error:
        reason = error.strerror or str(error)
        sys.exit(f"detserve-gateway: cannot listen on {settings.host}:{settings.port}: {reason}")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=settings.max_image_bytes + 1,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=max(1, int(settings.grace)),
        server_header=False,
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"Gateway on http://{shown}:{port} for {settings.server}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _Server(config, app.health).run(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=1024)


if __name__ == "__main__":
    main()
