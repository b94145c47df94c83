"""What nobody would send: schemathesis over the document, and bodies at random."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
)

from local_server import TritonServer
from photos import jpeg
from tests.server.gateways import gateway

BODIES = 5_000
# A string at random is no image, and a time of a nanosecond is too short: 400 and 504 are right.
LEFT_OUT = [positive_data_acceptance, not_a_server_error]


@pytest.fixture(scope="module")
def url(server: TritonServer) -> Iterator[str]:
    with gateway(server.grpc_url, "--max-batch", "4", "--max-body-mb", "1") as running:
        yield running.url


def test_schemathesis_finds_nothing(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tried = set()
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # a document of ours is valid
        for mode in GenerationMode:
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
                continue  # nothing could be wrong

            @settings(max_examples=60, deadline=None, derandomize=True, database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def try_it(case: Any) -> None:
                response = case.call(timeout=30)
                left_out = list(LEFT_OUT)
                if case.media_type == "multipart/form-data":
                    # A number in the place of a file is sent as a file with its digits.
                    left_out.append(negative_data_rejection)
                case.validate_response(response, excluded_checks=left_out)
                assert response.status_code < 500 or response.status_code in (503, 504)

            try_it()
        tried.add(operation.path)
    assert {"/detect", "/batch_detect", "/health", "/metrics", "/readyz"} <= tried


def mutated(generator: random.Random, valid: bytes) -> bytes:
    body = bytearray(valid)
    for _ in range(generator.randint(1, 8)):
        if not body:
            break
        at = generator.randrange(len(body))
        match generator.randrange(4):
            case 0:
                body[at] = generator.randrange(256)
            case 1:
                del body[at : at + generator.randint(1, 200)]
            case 2:
                body[at:at] = generator.randbytes(generator.randint(1, 30))
            case _:
                del body[at:]
    return bytes(body)


def valid_bodies() -> list[tuple[str, str, bytes]]:
    photo = jpeg("chelsea", quality=30)
    text = base64.b64encode(photo).decode()
    form = (
        b'--b\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n'
        + photo
        + b'\r\n--b\r\nContent-Disposition: form-data; name="score_threshold"\r\n\r\n'
        + b"0.5\r\n--b--\r\n"
    )
    single = json.dumps({"image": text, "score_threshold": 0.5}).encode()
    several = json.dumps({"images": [text, text], "max_detections": 3}).encode()
    return [
        ("/detect", "image/jpeg", photo),
        ("/detect", "application/json", single),
        ("/detect", "multipart/form-data; boundary=b", form.replace(b"%s", b"image")),
        ("/batch_detect", "application/json", several),
        ("/batch_detect", "multipart/form-data; boundary=b", form.replace(b"%s", b"images")),
    ]


def test_bodies_at_random_give_no_5xx_but_503(url: str) -> None:
    generator = random.Random(4)
    valid = valid_bodies()
    statuses: Counter[int] = Counter()

    async def ask(client: httpx.AsyncClient, share: int) -> None:
        for _ in range(share):
            path, kind, body = generator.choice(valid)
            response = await client.post(
                path, content=mutated(generator, body), headers={"Content-Type": kind}
            )
            statuses[response.status_code] += 1
            assert response.status_code < 500 or response.status_code == 503, response.text

    async def ask_all() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(ask(client, BODIES // 4) for _ in range(4)))

    asyncio.run(ask_all())
    assert sum(statuses.values()) == BODIES
    assert statuses[200]
    assert statuses[400]
    assert httpx.get(f"{url}/health").status_code == 200
