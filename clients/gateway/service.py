"""One image -> its answer: the cache, the line before the server, the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detection_client import AsyncDetectionClient, DetectionClientError
from gateway.cache import Cache, cache_key
from gateway.capacity import Capacity
from gateway.images import image_size_wh
from gateway.options import RequestOptions
from gateway.problems import Problem, problem_from_client
from gateway.served import ServedModel

__all__ = ["Answer", "Detector"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said about one image.

    Attributes:
        body: Detections, image and model, ready for JSON.
        inference_s: Seconds at the server; 0 from the cache.
        cached: Whether it is from the cache.
    """

    body: dict[str, Any]
    inference_s: float
    cached: bool


class Detector:
    """Asks the server, as far as the cache cannot tell and the server has room.

    Args:
        client: Of the server.
        capacity: How much of it may be used.
        served: What the server serves now.
        cache: Of results, or None.
        timeout: Longest time for an image, in seconds.
    """

    def __init__(
        self,
        client: AsyncDetectionClient,
        capacity: Capacity,
        served: ServedModel,
        cache: Cache | None,
        timeout: float,
    ) -> None:
        self._client = client
        self._capacity = capacity
        self._served = served
        self._cache = cache
        self._timeout = timeout
        self.last_success = float("-inf")  # of a real inference, on the monotonic clock

    async def detect(
        self, image: bytes, options: RequestOptions, headers: Mapping[str, str]
    ) -> Answer:
        """The answer for one encoded image.

        Raises:
            Problem: Why there is none.
        """
        seconds = min(options.timeout or self._timeout, self._timeout)
        size_wh = image_size_wh(image)
        try:
            async with asyncio.timeout(seconds):
                if self._cache is None:
                    return await self._ask(image, size_wh, options, headers, seconds)
                await self._served.wait()
                key = cache_key(image, options, self._served.fingerprint)

                async def compute() -> tuple[dict[str, Any], float, bool]:
                    # As long as anybody waits, whatever the first of them is patient for.
                    answer = await self._ask(image, size_wh, options, headers, self._timeout)
                    current = key == cache_key(image, options, self._served.fingerprint)
                    return answer.body, answer.inference_s, current

                body, inference_s, cached = await self._cache.get(key, compute)
                return Answer(body, inference_s, cached)
        except DetectionClientError as error:
            raise problem_from_client(error) from None
        except TimeoutError:
            raise Problem(504, f"no answer within {seconds:g} s") from None

    async def _ask(
        self,
        image: bytes,
        size_wh: tuple[int, int],
        options: RequestOptions,
        headers: Mapping[str, str],
        seconds: float,
    ) -> Answer:
        end = time.monotonic() + seconds
        async with self._capacity.slot():
            start = time.monotonic()
            found = await self._client.detect(
                image,
                score_threshold=options.score_threshold,
                iou_threshold=options.iou_threshold,
                max_detections=options.max_detections,
                timeout=max(0.001, end - start),
                headers=headers,
            )
            self.last_success = time.monotonic()
        body = {
            "detections": found.to_dicts(),
            "image": {"width": size_wh[0], "height": size_wh[1]},
            "model": {"name": self._client.model, "version": self._served.version},
        }
        return Answer(body, self.last_success - start, False)
