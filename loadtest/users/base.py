"""What users of every protocol have in common: when they ask, and how a call is reported."""
# mypy: disable-error-code="misc"

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import gevent
from gevent.pool import Group
from locust import User

from detection_client import DetectionClientError
from loadtest.images import TestImage, load_images
from loadtest.options import LoadOptions
from loadtest.records import Recorder

__all__ = ["DetectionUser", "NotSentError"]

_EMPTY_CALLS = 0.1  # share of the requests that are followed by an empty call
_PAUSE_S = 0.1  # after a failure, so that a server that refuses is not asked in a tight loop


class NotSentError(Exception):
    """An arrival of an open load that this process did not send: too many were in flight."""


class DetectionUser(User):
    """Asks for detections, in a closed loop or at the random moments of a Poisson process.

    In an open load a user is a source of one request a second; the sources together are a Poisson
    process of the sum of their rates. A request's latency counts from its moment of arrival.
    """

    abstract = True
    protocol: ClassVar[str] = ""
    recorder: ClassVar[Recorder] = Recorder()
    _shared: ClassVar[dict[str, Any]] = {}
    _in_flight: ClassVar[int] = 0

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.options = LoadOptions.from_namespace(environment.parsed_options)
        key = (self.options.images, self.options.mixed_sizes)
        if self._shared.get("key") != key:
            images = load_images(key[0], mixed_sizes=key[1])
            self._shared.clear()
            self._shared.update(key=key, images=images)
        self.images: list[TestImage] = self._shared["images"]
        self._open = self.options.arrival == "open"
        self._calls = Group()
        self._next_arrival = time.perf_counter() + random.expovariate(1.0)

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        """Something that all users of this process share, made when first asked for."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def wait_time(self) -> float:
        """Seconds until the next request."""
        return max(0.0, self._next_arrival - time.perf_counter()) if self._open else 0.0

    def request(self, name: str, ask: Callable[[list[TestImage]], int], count: int = 1) -> None:
        """Ask now (closed), or see whether a request has arrived (open).

        Args:
            name: What Locust's tables call the request.
            ask: Sends images and returns the size of the answer, or raises a client's error.
            count: How many images.
        """
        images = random.choices(self.images, k=count)
        name = f"{name} {images[0].size}" if images[0].size and count == 1 else name
        if not self._open:
            if not self._call(name, ask, images, time.perf_counter()):
                gevent.sleep(_PAUSE_S)
            return
        arrival = self._next_arrival
        if arrival > time.perf_counter():
            return
        self._next_arrival += random.expovariate(1.0)
        if DetectionUser._in_flight >= self.options.max_in_flight:
            self._report(name, arrival, 0, {}, NotSentError("too many requests are in flight"))
        else:
            self._calls.spawn(self._call, name, ask, images, arrival)

    def empty_call(self, image: TestImage) -> bool:  # noqa: ARG002 - for protocols that have one
        """Send an image that no model takes: what a request costs outside of Triton's models.

        Returns:
            Whether the protocol has such a call.

        Raises:
            DetectionClientError: It was not answered.
        """
        return False

    def on_stop(self) -> None:
        """Wait for the answers to what has been sent."""
        self._calls.join()

    def _call(
        self,
        name: str,
        ask: Callable[[list[TestImage]], int],
        images: list[TestImage],
        arrival: float,
    ) -> bool:
        error: DetectionClientError | None = None
        size = 0
        late_s = time.perf_counter() - arrival
        DetectionUser._in_flight += 1
        try:
            size = ask(images)
        except DetectionClientError as caught:
            error = caught
        finally:
            DetectionUser._in_flight -= 1
        self._report(name, arrival, size, {"images": len(images), "late_s": late_s}, error)
        if error is None and random.random() < _EMPTY_CALLS:
            start = time.perf_counter()
            with suppress(DetectionClientError):
                if self.empty_call(images[0]):
                    self.recorder.outside.append((time.time(), time.perf_counter() - start))
        return error is None

    def _report(
        self,
        name: str,
        arrival: float,
        size: int,
        context: dict[str, Any],
        error: Exception | None,
    ) -> None:
        took = time.perf_counter() - arrival
        self.environment.events.request.fire(
            request_type=self.protocol,
            name=name,
            response_time=took * 1000,
            response_length=size,
            exception=error,
            context=context,
            start_time=time.time() - took,
        )
