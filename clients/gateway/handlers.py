"""The two endpoints that detect."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.access import ApiKeys, RateLimit
from gateway.bodies import parse_batch, parse_single, read_body
from gateway.capacity import Capacity
from gateway.options import RequestOptions
from gateway.problems import Problem
from gateway.service import Answer, Detector
from gateway.settings import Settings
from gateway.tracing import Tracing

__all__ = ["Handlers", "answer_members"]

T = TypeVar("T")


class Handlers:
    """Takes requests apart, and puts answers together."""

    def __init__(
        self,
        settings: Settings,
        detector: Detector,
        capacity: Capacity,
        keys: ApiKeys,
        rate: RateLimit,
        tracing: Tracing,
    ) -> None:
        self._settings = settings
        self._detector = detector
        self._capacity = capacity
        self._keys = keys
        self._rate = rate
        self._tracing = tracing

    async def detect(self, request: Request) -> Response:
        """POST /detect."""
        return await self._answer(request, self._detect)

    async def batch_detect(self, request: Request) -> Response:
        """POST /batch_detect."""
        return await self._answer(request, self._batch_detect)

    async def _answer(self, request: Request, handle: Any) -> Response:
        start = time.perf_counter()
        # The cheap refusals come first: the body of a refused request is not even read.
        await self._rate.check(self._keys.check(request))
        async with self._capacity.request():
            try:
                body = await read_body(
                    request, self._settings.max_body_bytes, self._settings.read_timeout
                )
                with self._tracing.span(f"POST {request.url.path}", request.headers) as context:
                    request_id = request.state.request_id
                    headers = {**context, "x-request-id": request_id}
                    answer = await _unless_gone(request, handle(request, body, headers))
            except ClientDisconnect:
                return Problem(499, "the client has gone").response()
        answer["timing"]["total_ms"] = _ms(time.perf_counter() - start)
        answer["request_id"] = request_id
        return Response(json.dumps(answer), media_type="application/json")

    async def _detect(
        self, request: Request, body: bytes, headers: dict[str, str]
    ) -> dict[str, Any]:
        query = parse_single(request, body, self._settings.max_image_bytes)
        image = query.images[0]
        assert isinstance(image, bytes)
        self._capacity.check()  # things may have changed while the body came
        return answer_members(await self._detector.detect(image, query.options, headers))

    async def _batch_detect(
        self, request: Request, body: bytes, headers: dict[str, str]
    ) -> dict[str, Any]:
        settings = self._settings
        query = parse_batch(request, body, settings.max_image_bytes, settings.max_batch)
        self._capacity.check()
        start = time.perf_counter()
        outcomes = await asyncio.gather(
            *(self._one(image, query.options, headers) for image in query.images)
        )
        problems = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
        if len(problems) == len(outcomes) and all(problem.status >= 500 for problem in problems):
            raise problems[0]  # nothing is wrong with the images
        results = [
            {"error": outcome.to_dict()} if isinstance(outcome, Problem) else outcome
            for outcome in outcomes
        ]
        return {
            "results": results,
            "timing": {"inference_ms": _ms(time.perf_counter() - start)},
        }

    async def _one(
        self, image: bytes | Problem, options: RequestOptions, headers: dict[str, str]
    ) -> dict[str, Any] | Problem:
        if isinstance(image, Problem):
            return image
        start = time.perf_counter()
        try:
            members = answer_members(await self._detector.detect(image, options, headers))
        except Problem as problem:
            return problem
        members["timing"]["total_ms"] = _ms(time.perf_counter() - start)
        return members


def answer_members(answer: Answer) -> dict[str, Any]:
    """The members of one image's answer."""
    return {
        **answer.body,
        "timing": {"inference_ms": _ms(answer.inference_s)},
        "cached": answer.cached,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work, which is cancelled when the client goes.

    Raises:
        ClientDisconnect: The client has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
