"""Several real Tritons behind a real nginx, and behind clients that balance by themselves."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from balancing.measure import balancer
from balancing.nginx import Nginx
from balancing.servers import Launcher, free_ports
from detection_client import (
    AsyncDetectionClient,
    DetectionClient,
    InvalidInputError,
    ServerUnavailableError,
)
from photos import jpeg
from tests.images import encode, photo
from tests.server.balancing.conftest import wait_until
from tests.server.gateways import gateway

CAT = jpeg("chelsea")
SERVICE = "/inference.GRPCInferenceService"


def entries(nginx: Nginx) -> list[dict[str, Any]]:
    return [json.loads(line) for line in nginx.access_log.read_text().splitlines()]


def labels(url: str | Sequence[str], image: bytes = CAT, **options: Any) -> set[str]:
    with DetectionClient(url, **options) as client:
        return {one.label for one in client.detect(image)}


class TestRequests:
    @pytest.mark.parametrize("protocol", ["grpc", "http"])
    def test_reach_every_server(self, nginx: Nginx, both: list[Launcher], protocol: str) -> None:
        before = [server.answered("detection") for server in both]
        with DetectionClient(nginx.url(protocol), retries=0) as client:
            found = [client.detect(CAT) for _ in range(8)]
        with DetectionClient(both[0].url(protocol)) as direct:
            expected = direct.detect(CAT)
        for one in found:
            np.testing.assert_array_equal(one.boxes_xyxy, expected.boxes_xyxy)
            np.testing.assert_array_equal(one.scores, expected.scores)
        after = [server.answered("detection") for server in both]
        assert all(now - then >= 3 for now, then in zip(after, before, strict=True))
        wait_until(lambda: len(entries(nginx)) >= 9)  # with the model's configuration
        served = [entry for entry in entries(nginx) if entry["path"].lower().endswith("infer")]
        assert len(served) == 8
        assert {entry["status"] for entry in served} == {200}
        assert {entry["upstream_status"] for entry in served} == {"200"}

    def test_asyncio(self, nginx: Nginx) -> None:
        async def ask(url: str) -> list[int]:
            async with AsyncDetectionClient(url) as client:
                return [len(found) for found in await client.detect_batch([CAT] * 8)]

        for protocol in ("grpc", "http"):
            assert len(set(asyncio.run(ask(nginx.url(protocol))))) == 1

    @pytest.mark.parametrize("protocol", ["grpc", "http"])
    def test_large_bodies(self, nginx: Nginx, protocol: str) -> None:
        large = encode(photo("chelsea").resize((2400, 1600)), "BMP")
        assert len(large) > 10_000_000
        assert labels(nginx.url(protocol), large) == {"cat"}

    def test_too_large_bodies(self, nginx: Nginx) -> None:
        body = b"0" * 67_500_000
        with pytest.raises(InvalidInputError, match="64m"):
            labels(nginx.url("grpc"), body)
        answer = httpx.post(f"{nginx.url('http')}/v2/models/detection/infer", content=body)
        assert answer.status_code == 413
        assert "larger than 64m" in answer.json()["error"]

    @pytest.mark.parametrize("protocol", ["grpc", "http"])
    def test_tritons_own_errors_pass(self, nginx: Nginx, protocol: str) -> None:
        with pytest.raises(InvalidInputError, match="not a JPEG"):
            labels(nginx.url(protocol), b"no image")

    def test_a_stream(self, nginx: Nginx) -> None:
        results: list[Any] = []
        image = triton_grpc.InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[CAT]], dtype=np.object_))
        address = nginx.url("grpc").removeprefix("grpc://")
        with triton_grpc.InferenceServerClient(address) as client:
            client.start_stream(lambda result, error: results.append(error or result))
            for _ in range(5):
                client.async_stream_infer("detection", [image])
            wait_until(lambda: len(results) == 5)
            client.stop_stream()
        assert {int(result.as_numpy("num_detections")[0, 0]) for result in results} == {1}

    def test_status_and_health_of_nginx_itself(self, nginx: Nginx) -> None:
        assert "Active connections" in httpx.get(f"{nginx.url('status')}/status").text
        assert httpx.get(f"{nginx.url('status')}/health").status_code == 200


class TestClosedEndpoints:
    @pytest.mark.parametrize(
        "path",
        [
            "/v2/repository/index",
            "/v2/repository/models/detection/load",
            "/v2/repository/models/detection/unload",
            "/v2/systemsharedmemory/status",
            "/v2/systemsharedmemory/region/x/register",
            "/v2/cudasharedmemory/status",
            "/v2/trace/setting",
            "/v2/models/detection/trace/setting",
            "/v2/logging",
            "/v2/%72epository/index",
            "/v2//repository/index",
            "/v2/models/../repository/index",
            "/v2/models/x/infer/../../../repository/index",
            "/v2/models/x/infer%0a",
            "/v2/health/ready%0A",
            "/metrics",
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_http(self, nginx: Nginx, method: str, path: str) -> None:
        with httpx.Client() as client:
            # httpx would tidy the path up before it is sent.
            request = client.build_request(method, nginx.url("http"), content=b"{}")
            request.url = request.url.copy_with(raw_path=path.encode())
            answer = client.send(request)
        assert answer.status_code == 403
        assert answer.json() == {"error": "not offered by the balancer"}
        wait_until(lambda: bool(entries(nginx)))  # written after the answer
        assert entries(nginx)[-1]["upstream"] == ""

    def test_grpc(self, nginx: Nginx) -> None:
        address = nginx.url("grpc").removeprefix("grpc://")
        with triton_grpc.InferenceServerClient(address) as client:
            calls: list[Callable[[], Any]] = [
                lambda: client.load_model("detection"),
                lambda: client.unload_model("detection"),
                client.get_model_repository_index,
                client.get_system_shared_memory_status,
                client.unregister_system_shared_memory,
                client.get_cuda_shared_memory_status,
                lambda: client.update_trace_settings(settings={"trace_level": ["OFF"]}),
                client.get_log_settings,
            ]
            for call in calls:
                with pytest.raises(InferenceServerException, match="not offered") as caught:
                    call()
                assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
            assert client.is_server_live()
            assert client.get_server_metadata().name == "triton"
        wait_until(lambda: len(entries(nginx)) == len(calls) + 2)
        closed = [entry for entry in entries(nginx) if entry["grpc_status"] == "7"]
        assert len(closed) == len(calls)
        assert {entry["upstream"] for entry in closed} == {""}

    def test_what_only_tells_is_open(self, nginx: Nginx) -> None:
        for path in (
            "/v2",
            "/v2/health/ready",
            "/v2/models/detection",
            "/v2/models/detection/ready",
            "/v2/models/detection/versions/1/config",
            "/v2/models/detection/stats",
            "/v2/models/stats",
        ):
            assert httpx.get(f"{nginx.url('http')}{path}").status_code == 200, path


class TestGateway:
    def test_rest_page_and_websocket(self, both: list[Launcher]) -> None:
        (port,) = free_ports(1)
        with (
            gateway(both[0].url("grpc")) as one,
            gateway(both[1].url("grpc")) as two,
            balancer(
                both,
                BALANCER_GATEWAY_PORT=str(port),
                BALANCER_GATEWAYS=" ".join(each.url.partition("//")[2] for each in (one, two)),
            ) as nginx,
        ):
            url = nginx.url("gateway")
            headers = {"Content-Type": "image/jpeg"}
            for _ in range(4):
                answer = httpx.post(f"{url}/detect", content=CAT, headers=headers)
                assert [found["label"] for found in answer.json()["detections"]] == ["cat"]
            assert httpx.get(f"{url}/").headers["content-type"].startswith("text/html")
            assert httpx.get(f"{url}/metrics").status_code == 403
            assert asyncio.run(live(url)) == ["cat"]
        assert one.log
        assert two.log


async def live(url: str) -> list[str]:
    """One frame over the WebSocket; what is found in it."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/live", origin=url) as socket,
    ):
        await socket.send_json({})
        await socket.send_bytes(CAT)
        while True:
            message = await socket.receive_json(timeout=20)
            if "detections" in message:
                return [found["label"] for found in message["detections"]]


class TestTls:
    def test_both_protocols(self, both: list[Launcher], tmp_path: Path) -> None:
        certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
                *("-keyout", str(key), "-out", str(certificate)),
                *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
        )
        with balancer(both, BALANCER_TLS_CERT=str(certificate), BALANCER_TLS_KEY=str(key)) as nginx:
            for protocol in ("grpc", "http"):
                assert nginx.url(protocol).startswith(f"{protocol}s://")
                assert labels(nginx.url(protocol), ca_file=certificate) == {"cat"}
                with pytest.raises(ServerUnavailableError, match="not trusted"):
                    labels(nginx.url(protocol), retries=0)
