"""The REST gateway in front of a real Triton."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from detection_client import DetectionClient
from local_server import TritonServer
from photos import jpeg
from tests.server.gateways import Gateway, gateway
from tests.server.test_supervisor import wait_for

CAT = jpeg("chelsea")


@pytest.fixture(scope="module")
def running(server: TritonServer) -> Iterator[Gateway]:
    with gateway(server.grpc_url, "--max-image-mb", "1", "--max-body-mb", "2") as found:
        yield found


@pytest.fixture(scope="module")
def http(running: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


def is_problem(response: httpx.Response, status: int) -> bool:
    return (
        response.status_code == status
        and response.headers["content-type"] == "application/problem+json"
        and response.json()["status"] == status
    )


def as_json(data: bytes, **options: Any) -> dict[str, Any]:
    return {"json": {"image": base64.b64encode(data).decode(), **options}}


class TestDetect:
    @pytest.mark.parametrize(
        "request_arguments",
        [
            as_json(CAT, score_threshold=0.6),
            {
                "json": {
                    "image": "data:image/jpeg;base64," + base64.b64encode(CAT).decode(),
                    "score_threshold": 0.6,
                }
            },
            {"files": {"image": ("cat.jpg", CAT)}, "data": {"score_threshold": "0.6"}},
            {
                "content": CAT,
                "headers": {"Content-Type": "image/jpeg"},
                "params": {"score_threshold": 0.6},
            },
            {
                "content": CAT,
                "headers": {"Content-Type": "application/octet-stream"},
                "params": {"score_threshold": 0.6},
            },
        ],
        ids=["JSON", "data: URL", "multipart", "image/jpeg", "octet-stream"],
    )
    def test_every_form_of_body_gets_the_clients_answer(
        self, http: httpx.Client, server: TritonServer, request_arguments: dict[str, Any]
    ) -> None:
        with DetectionClient(server.grpc_url) as client:
            expected = client.detect(CAT, score_threshold=0.6).to_dicts()
        response = http.post("/detect", **request_arguments)
        answer = response.json()
        assert response.status_code == 200, response.text
        assert answer["detections"] == expected
        assert expected
        assert answer["image"] == {"width": 451, "height": 300}
        assert answer["model"] == {"name": "detection", "version": "1"}
        assert 0 < answer["timing"]["inference_ms"] <= answer["timing"]["total_ms"]
        assert answer["cached"] is False
        assert answer["request_id"] == response.headers["x-request-id"]

    @pytest.mark.parametrize(
        ("status", "arguments"),
        [
            (400, {"json": {}}),
            (400, {"json": {"image": 3}}),
            (400, {"json": {"image": "***"}}),
            (400, {"json": {"image": ""}}),
            (400, {"json": ["image"]}),
            (400, as_json(CAT, score_threshold=2)),
            (400, as_json(CAT, score_threshold=True)),
            (400, as_json(CAT, max_detections=1.5)),
            (400, as_json(CAT, treshold=0.5)),
            (400, as_json(CAT[:200])),
            (400, {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}),
            (400, {"files": {"picture": CAT}}),
            (413, as_json(b"\xff" * 1_100_000)),
            (413, {"content": b"x" * 2_100_000, "headers": {"Content-Type": "image/png"}}),
            (
                413,
                {"content": iter([b"x" * 700_000] * 4), "headers": {"Content-Type": "image/png"}},
            ),
            (415, {"content": b"x", "headers": {"Content-Type": "text/plain"}}),
            (415, {"content": b"x"}),
            (504, {**as_json(CAT), "headers": {"X-Request-Timeout": "0.001"}}),
        ],
    )
    def test_errors_are_problems(
        self, http: httpx.Client, status: int, arguments: dict[str, Any]
    ) -> None:
        assert is_problem(http.post("/detect", **arguments), status)

    def test_wrong_paths_and_methods_are_problems(self, http: httpx.Client) -> None:
        assert is_problem(http.get("/nothing"), 404)
        assert is_problem(http.get("/page/nothing.js"), 404)
        refused = http.get("/detect")
        assert is_problem(refused, 405)
        assert refused.headers["allow"] == "POST"


class TestBatch:
    def test_one_bad_image_is_its_entrys_error(self, http: httpx.Client) -> None:
        images = [base64.b64encode(data).decode() for data in (CAT, b"no image", CAT)]
        answer = http.post("/batch_detect", json={"images": images}).json()
        first, second, third = answer["results"]
        assert first["detections"] == third["detections"]
        assert first["detections"]
        assert second["error"]["status"] == 400
        assert set(second) == {"error"}

    def test_repeated_fields(self, http: httpx.Client) -> None:
        files = [("images", ("a.jpg", CAT)), ("images", ("b.jpg", jpeg("coffee")))]
        answer = http.post("/batch_detect", files=files, data={"max_detections": "1"}).json()
        assert [len(result["detections"]) for result in answer["results"]] == [1, 1]

    def test_too_many_or_no_images(self, http: httpx.Client) -> None:
        assert is_problem(http.post("/batch_detect", json={"images": ["eA=="] * 17}), 400)
        assert is_problem(http.post("/batch_detect", json={"images": []}), 400)


class TestOperation:
    def test_request_ids_come_back_and_are_logged(
        self, http: httpx.Client, running: Gateway
    ) -> None:
        def is_ours(entry: dict[str, Any]) -> bool:
            return bool(entry["request_id"] == "my-id")

        headers = {"X-Request-ID": "my-id", "Content-Type": "image/jpeg"}
        response = http.post("/detect", content=CAT, headers=headers)
        assert response.headers["x-request-id"] == "my-id"
        wait_for(lambda: any(map(is_ours, map(json.loads, running.log))), 10)
        entry = next(filter(is_ours, map(json.loads, running.log)))
        assert {"path", "method", "status", "ms", "client", "key", "bytes_in"} <= set(entry)

    @pytest.mark.parametrize(
        ("trusted", "client"), [("127.0.0.1", "198.51.100.7"), ("192.0.2.1", "127.0.0.1")]
    )
    def test_the_address_of_a_client_is_a_trusted_proxys_word(
        self,
        server: TritonServer,
        monkeypatch: pytest.MonkeyPatch,
        trusted: str,
        client: str,
    ) -> None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
        with gateway(server.grpc_url) as running:
            headers = {"X-Forwarded-For": "198.51.100.7", "Content-Type": "image/jpeg"}
            httpx.post(f"{running.url}/detect", content=b"x", headers=headers)
        (entry,) = map(json.loads, running.log)
        assert entry["client"] == client

    def test_an_id_that_is_none_is_replaced(self, http: httpx.Client) -> None:
        response = http.get("/livez", headers={"X-Request-ID": "a b"})
        assert response.headers["x-request-id"] != "a b"

    def test_metrics_count_by_route_and_status(self, http: httpx.Client) -> None:
        http.post("/detect", content=b"x", headers={"Content-Type": "image/png"})
        text = http.get("/metrics").text
        assert 'gateway_requests_total{route="/detect",status="400"}' in text
        assert 'gateway_request_seconds_bucket{le="0.1",route="/detect",status="4xx"}' in text
        assert "gateway_in_flight 0.0" in text

    def test_health(self, http: httpx.Client) -> None:
        assert http.get("/health").json() == {
            "status": "ok",
            "checks": {"triton": {"status": "ok"}},
        }
        assert http.get("/readyz").status_code == 200

    def test_health_says_that_triton_is_gone(self) -> None:
        with gateway("grpc://127.0.0.1:1") as lonely:
            response = httpx.get(f"{lonely.url}/health")
            assert response.status_code == 503
            assert "Triton" in response.json()["checks"]["triton"]["detail"]
            refused = httpx.post(f"{lonely.url}/detect", **as_json(CAT))
            assert is_problem(refused, 503)
            assert int(refused.headers["retry-after"]) >= 1

    def test_the_page_is_kept_to_itself(self, http: httpx.Client) -> None:
        response = http.get("/")
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert "camera=(self)" in response.headers["permissions-policy"]

    def test_api_keys(self, server: TritonServer, tmp_path: Path) -> None:
        hashes = tmp_path / "keys"
        hashes.write_text(f"# of the tests\n{hashlib.sha256(b'secret').hexdigest()}\n")
        with gateway(server.grpc_url, "--api-keys", str(hashes)) as guarded:
            url = f"{guarded.url}/detect"
            for headers in ({}, {"X-API-Key": "other"}, {"Authorization": "Basic secret"}):
                assert is_problem(httpx.post(url, headers=headers, **as_json(CAT)), 401)
            for headers in ({"X-API-Key": "secret"}, {"Authorization": "Bearer secret"}):
                assert httpx.post(url, headers=headers, **as_json(CAT)).status_code == 200
        # The log tells keys apart without telling them.
        ours = hashlib.sha256(b"secret").hexdigest()[:8]
        assert [json.loads(line)["key"] for line in guarded.log] == ["", "", "", ours, ours]

    def test_rate_limit(self, server: TritonServer) -> None:
        with gateway(server.grpc_url, "--rate", "2/minute") as limited:
            answers = [httpx.post(f"{limited.url}/detect", **as_json(CAT)) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 60


async def arrived(client: httpx.AsyncClient, calls: Sequence[asyncio.Task[Any]]) -> None:
    """Wait until the gateway has all of the requests, or has answered them."""
    while True:
        metrics = (await client.get("/metrics")).text
        (under_way,) = re.findall(r"^gateway_requests_open (\d+)", metrics, re.MULTILINE)
        if int(under_way) + sum(call.done() for call in calls) >= len(calls):
            return


class TestEnds:
    def test_a_request_whose_client_goes_is_cancelled(self, running: Gateway) -> None:
        async def leave() -> None:
            async with httpx.AsyncClient(base_url=running.url) as client:
                calls = [
                    asyncio.create_task(client.post("/detect", **as_json(CAT))) for _ in range(8)
                ]
                await arrived(client, calls)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

        asyncio.run(leave())
        deadline = time.monotonic() + 10
        while not any(json.loads(line)["status"] == 499 for line in running.log):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "gateway_in_flight 0.0" in httpx.get(f"{running.url}/metrics").text

    def test_requests_under_way_are_answered_at_the_end(self, server: TritonServer) -> None:
        async def ask(ending: Gateway) -> list[int]:
            async with httpx.AsyncClient(base_url=ending.url, timeout=30) as client:
                await client.get("/livez")
                calls = [
                    asyncio.create_task(client.post("/detect", **as_json(CAT))) for _ in range(8)
                ]
                await arrived(client, calls)
                ending.process.send_signal(signal.SIGTERM)
                return [answer.status_code for answer in await asyncio.gather(*calls)]

        with gateway(server.grpc_url, "--max-wait", "5") as ending:
            assert asyncio.run(ask(ending)) == [200] * 8
            assert ending.process.wait(20) == 0


class TestLive:
    def test_frames_are_answered_in_order(self, running: Gateway) -> None:
        with connect(running.url.replace("http", "ws") + "/live") as socket:
            socket.send('{"score_threshold": 0.6}')
            for frame in (CAT, b"no image", CAT):
                socket.send(frame)
            first, second, third = (json.loads(socket.recv(10)) for _ in range(3))
        assert [first["frame"], second["frame"], third["frame"]] == [0, 1, 2]
        assert first["detections"] == third["detections"]
        assert first["detections"]
        assert second["error"]["status"] == 400

    def test_options_come_first_and_must_be_good(self, running: Gateway) -> None:
        for message in (CAT, '{"score_threshold": 7}', "no JSON"):
            with connect(running.url.replace("http", "ws") + "/live") as socket:
                socket.send(message)
                with pytest.raises(ConnectionClosed):
                    socket.recv(10)

    def test_other_origins_are_refused(self, running: Gateway) -> None:
        url = running.url.replace("http", "ws") + "/live"
        other = {"Origin": "http://elsewhere.example"}
        with pytest.raises(InvalidStatus, match="403"), connect(url, additional_headers=other):
            pass
        with connect(url, additional_headers={"Origin": running.url}):
            pass
