"""Which detector the server serves now: its version, and a fingerprint that changes with it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from detection_client import AsyncDetectionClient, DetectionClientError

__all__ = ["ServedModel"]

_INTERVAL_S = 2.0
_CALL_TIMEOUT_S = 2.0


class ServedModel:
    """Follows the configuration of the served model.

    A promotion gives the ensemble a new version and new steps, both in its configuration.

    Args:
        client: Of the server.
        interval: Seconds between two looks.
    """

    def __init__(self, client: AsyncDetectionClient, interval: float = _INTERVAL_S) -> None:
        self._client = client
        self._interval = interval
        self.version = ""
        self.fingerprint = ""

    async def wait(self) -> None:
        """Wait until the model is known, which it is once the server has been reached."""
        if not self.fingerprint:
            await self.look()

    async def look(self) -> None:
        """Read the configuration.

        Raises:
            DetectionClientError: The server does not tell.
        """
        config = await self._client.model_config(timeout=_CALL_TIMEOUT_S)
        text = json.dumps(config, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.version = _version_of(config)

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except DetectionClientError:
                # What answers next may be another model: nothing of before is to be trusted.
                self.fingerprint = ""
            await asyncio.sleep(self._interval)


def _version_of(config: dict[str, Any]) -> str:
    policy = config.get("version_policy") or {}
    versions = (policy.get("specific") or {}).get("versions") or ["1"]
    return str(max(versions, key=int))
