"""The gateway's parts, each by itself: no server, no network."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import HTTPConnection

from detection_client import DetectionClientError, ServerUnavailableError
from gateway.access import ApiKeys, RateLimit, read_key_hashes
from gateway.cache import cache_key
from gateway.capacity import Capacity
from gateway.options import RequestOptions
from gateway.problems import Problem
from gateway.served import ServedModel
from gateway.settings import parse_settings
from gateway.tracing import Tracing

KEY_HASH = hashlib.sha256(b"sesame").hexdigest()
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


class TestCapacity:
    def test_images_go_in_their_order_and_no_more_than_the_slots(self) -> None:
        async def work() -> None:
            capacity = Capacity(slots=2, max_wait=60, max_open=100)
            order: list[int] = []

            async def image(number: int) -> None:
                async with capacity.slot():
                    order.append(number)
                    assert capacity.in_flight <= 2
                    await asyncio.sleep(0)

            await asyncio.gather(*(image(number) for number in range(20)))
            assert order == list(range(20))
            assert (capacity.in_flight, capacity.expected_wait) == (0, 0.0)

        run(work)

    def test_one_that_waits_and_is_cancelled_leaves_its_place(self) -> None:
        async def work() -> None:
            capacity = Capacity(slots=1, max_wait=60, max_open=100)
            async with capacity.slot():
                waiting = [asyncio.create_task(self.pass_through(capacity)) for _ in range(3)]
                await asyncio.sleep(0)
                waiting[0].cancel()
                await asyncio.sleep(0)
            waiting[1].cancel()  # at the moment when its turn has come
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
            assert (results[2], capacity.in_flight) == (None, 0)

        run(work)

    @staticmethod
    async def pass_through(capacity: Capacity) -> None:
        async with capacity.slot():
            pass

    def test_a_request_is_refused_when_its_wait_would_be_long(self) -> None:
        async def work() -> None:
            capacity = Capacity(slots=1, max_wait=0.25, max_open=100)
            async with capacity.slot():
                capacity.interval = 0.1
                waiting = []
                for _ in range(2):  # expected: 0.1 and 0.2 s
                    capacity.check()
                    waiting.append(asyncio.create_task(self.pass_through(capacity)))
                    await asyncio.sleep(0)
                with pytest.raises(Problem) as refused:
                    capacity.check()
            assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
            assert capacity.shed == 1
            await asyncio.gather(*waiting)
            capacity.check()

        run(work)

    def test_requests_being_received_are_bounded_as_well(self) -> None:
        async def work() -> None:
            capacity = Capacity(slots=8, max_wait=1, max_open=1)
            async with capacity.request():
                with pytest.raises(Problem, match="more requests than can be served"):
                    async with capacity.request():
                        pytest.fail("it was let in")
            async with capacity.request():
                assert capacity.open == 1

        run(work)


def connection(**headers: str) -> HTTPConnection:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": raw, "client": ("10.1.2.3", 5)})


class TestAccess:
    def test_without_keys_a_client_goes_by_its_address(self) -> None:
        assert ApiKeys(()).check(connection()) == "10.1.2.3"

    @pytest.mark.parametrize(
        "headers", [{"x_api_key": "sesame"}, {"authorization": "Bearer sesame"}]
    )
    def test_a_key_is_accepted(self, headers: dict[str, str]) -> None:
        assert ApiKeys((KEY_HASH,)).check(connection(**headers)) == KEY_HASH

    @pytest.mark.parametrize(
        "headers", [{}, {"x_api_key": "open"}, {"authorization": "Basic sesame"}]
    )
    def test_another_is_not(self, headers: dict[str, str]) -> None:
        with pytest.raises(Problem) as refused:
            ApiKeys((KEY_HASH,)).check(connection(**headers))
        assert refused.value.status == 401
        assert "sesame" not in refused.value.detail

    def test_hashes_from_a_file_and_from_text(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text(f"# the door\n{KEY_HASH.upper()}  # Ali\n\n")
        assert read_key_hashes(file) == read_key_hashes(Path(KEY_HASH)) == (KEY_HASH,)
        assert read_key_hashes(None) == ()
        many = [f"{number:064x}" for number in range(8)]
        assert read_key_hashes(Path(",".join(many))) == tuple(many)

    @pytest.mark.parametrize("text", ["sesame", "", f"{KEY_HASH}\nsesame", KEY_HASH[:-1] + "x"])
    def test_what_is_no_hash_is_refused(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "keys"
        file.write_text(text)
        with pytest.raises(ValueError, match="SHA-256"):
            read_key_hashes(file)

    def test_a_client_that_asks_too_often(self) -> None:
        async def work() -> None:
            rate = RateLimit("2/hour", "")
            await rate.check("a")
            await rate.check("a")
            with pytest.raises(Problem) as refused:
                await rate.check("a")
            assert refused.value.status == 429
            assert 3500 < int(refused.value.headers["Retry-After"]) <= 3600
            await rate.check("b")

        run(work)

    def test_a_rate_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="often"):
            RateLimit("often", "")


class TestTracing:
    def test_a_context_passes_through(self) -> None:
        tracing = Tracing(None)
        with tracing.span("POST /detect", {"traceparent": PARENT, "tracestate": "a=1"}) as headers:
            assert headers == {"traceparent": PARENT, "tracestate": "a=1"}

    @pytest.mark.parametrize("parent", ["", "junk", f"{PARENT}\r\nx: y", PARENT.upper()])
    def test_a_broken_one_does_not(self, parent: str) -> None:
        with Tracing(None).span("POST /detect", {"traceparent": parent}) as headers:
            assert headers["traceparent"] != parent
            assert headers["traceparent"].endswith("-00")  # not sampled: nobody asked

    def test_a_span_is_the_callers_child_and_the_servers_parent(self) -> None:
        exporter = InMemorySpanExporter()
        tracing = Tracing(exporter)
        with tracing.span("POST /detect", {"traceparent": PARENT}) as headers:
            passed = headers["traceparent"].split("-")
        tracing.close()
        (span,) = exporter.get_finished_spans()
        assert span.parent is not None
        assert format(span.parent.span_id, "016x") == PARENT.split("-")[2]
        assert passed[1] == PARENT.split("-")[1]
        assert passed[2] == format(span.context.span_id, "016x")


class FakeClient:
    """Stands in for a server whose configuration changes as by a promotion."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {"name": "detection"}
        self.error: DetectionClientError | None = None

    async def model_config(self, *, timeout: float) -> dict[str, Any]:
        assert timeout > 0
        if self.error is not None:
            raise self.error
        return self.config


def test_a_promotion_makes_other_cache_keys() -> None:
    async def work() -> None:
        client = FakeClient()
        served = ServedModel(client, interval=0.01)  # type: ignore[arg-type]
        await served.wait()
        options = RequestOptions(score_threshold=0.5)
        first = cache_key(b"image", options, served.fingerprint)
        assert served.version == "1"
        client.config = {**client.config, "version_policy": {"specific": {"versions": ["2"]}}}
        following = asyncio.create_task(served.follow())
        while served.version != "2":
            await asyncio.sleep(0.01)
        assert cache_key(b"image", options, served.fingerprint) != first
        client.error = ServerUnavailableError("gone")
        while served.fingerprint:  # what answers next may be another model
            await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run(work)


def test_cache_keys_differ_by_what_is_asked() -> None:
    asked = [
        (b"image", RequestOptions()),
        (b"other", RequestOptions()),
        (b"image", RequestOptions(score_threshold=0.5)),
        (b"image", RequestOptions(iou_threshold=0.5)),
        (b"image", RequestOptions(max_detections=5)),
    ]
    assert len({cache_key(image, options, "model") for image, options in asked}) == len(asked)
    patient = cache_key(b"image", RequestOptions(timeout=9), "model")
    assert patient == cache_key(b"image", RequestOptions(), "model")


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        ([], {"DETSERVE_MAX_WAIT": "soon"}, "variable DETSERVE_MAX_WAIT: could not convert"),
        ([], {"DETSERVE_GATEWAY_PORT": "-1"}, "variable DETSERVE_GATEWAY_PORT: -1 is not above 0"),
        (["--max-wait", "soon"], {}, "argument --max-wait: invalid float value: 'soon'"),
    ],
)
def test_a_wrong_setting_is_named(
    arguments: list[str],
    variables: dict[str, str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_settings(arguments, variables)
    assert told in capsys.readouterr().err


def test_a_setting_may_be_a_variable() -> None:
    assert parse_settings([], {"DETSERVE_MAX_WAIT": "2"}).max_wait == 2
    assert parse_settings(["--max-wait", "3"], {"DETSERVE_MAX_WAIT": "2"}).max_wait == 3
    assert parse_settings(["--max-wait", "3"], {"DETSERVE_MAX_WAIT": "soon"}).max_wait == 3
