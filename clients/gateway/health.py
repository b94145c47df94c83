"""Whether the gateway and what it needs work."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

from PIL import Image

from detection_client import AsyncDetectionClient, DetectionClientError
from gateway.cache import Cache
from gateway.problems import problem_from_client
from gateway.service import Detector

__all__ = ["Health"]

_RECENT_S = 5.0
_CALL_TIMEOUT_S = 3.0


class Health:
    """Asks the server, and says what does not work.

    Args:
        client: Of the server.
        detector: Knows of the last real inference.
        cache: Of results, or None.
    """

    def __init__(
        self, client: AsyncDetectionClient, detector: Detector, cache: Cache | None
    ) -> None:
        self._client = client
        self._detector = detector
        self._cache = cache
        self._one_at_a_time = asyncio.Lock()
        self._failed_at = float("-inf")
        self._failure = ""
        self.draining = False
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), "grey").save(buffer, "PNG")
        self._image = buffer.getvalue()

    async def report(self) -> tuple[int, dict[str, Any]]:
        """The status, and what works and what does not."""
        failure = await self._inference()
        checks: dict[str, Any] = {
            "triton": {"status": "fail", "detail": failure} if failure else {"status": "ok"}
        }
        status = "fail" if failure else "ok"
        if self._cache is not None:
            if await self._cache.ping():
                checks["redis"] = {"status": "ok"}
            else:
                checks["redis"] = {
                    "status": "degraded",
                    "detail": "Redis does not answer: results are not cached",
                }
                status = "degraded" if status == "ok" else status
        if self.draining:
            checks["gateway"] = {"status": "fail", "detail": "the gateway is shutting down"}
            status = "fail"
        return (503 if status == "fail" else 200), {"status": status, "checks": checks}

    async def _inference(self) -> str:
        """What is wrong with a real inference; empty where nothing is."""
        async with self._one_at_a_time:
            now = time.monotonic()
            if now - self._detector.last_success < _RECENT_S:
                return ""
            if now - self._failed_at < 1.0:
                return self._failure
            try:
                if not await self._client.server_ready(timeout=_CALL_TIMEOUT_S):
                    self._failure = (
                        f"Triton cannot be reached, or its model {self._client.model!r}"
                        " is not ready"
                    )
                else:
                    await self._client.detect(self._image, timeout=_CALL_TIMEOUT_S)
                    self._detector.last_success = time.monotonic()
                    return ""
            except DetectionClientError as error:
                self._failure = f"an inference failed: {problem_from_client(error).detail}"
            self._failed_at = time.monotonic()
            return self._failure
