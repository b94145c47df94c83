"""Server addresses: what is understood, and what is refused at construction."""

from __future__ import annotations

import pytest

from detection_client import AsyncDetectionClient, DetectionClient, InvalidInputError
from detection_client._address import ServerAddress


@pytest.mark.parametrize(
    ("url", "shown", "is_grpc", "uses_tls"),
    [
        ("grpc://gpu-box", "grpc://gpu-box:8001", True, False),
        ("http://gpu-box", "http://gpu-box:8000", False, False),
        ("grpcs://gpu-box", "grpcs://gpu-box:443", True, True),
        ("https://gpu-box", "https://gpu-box:443", False, True),
        ("GRPC://127.0.0.1:9001", "grpc://127.0.0.1:9001", True, False),
        ("grpc://[::1]:9001/", "grpc://[::1]:9001", True, False),
        ("http://proxy:80/triton/", "http://proxy:80/triton", False, False),
    ],
)
def test_understood(url: str, shown: str, is_grpc: bool, uses_tls: bool) -> None:
    address = ServerAddress.parse(url)
    assert (str(address), address.is_grpc, address.uses_tls) == (shown, is_grpc, uses_tls)
    assert DetectionClient(url).url == shown


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "protocol"),
        ("localhost:8001", "protocol"),
        ("ftp://localhost:8001", "'ftp' is none of"),
        ("grpc://", "name a host"),
        ("grpc://:8001", "name a host"),
        ("grpc://my host:8001", "name a host"),
        ("grpc://host:eight", "not a server's address"),
        ("grpc://host:70000", "not a server's address"),
        ("grpc://host:0", "no port to connect to"),
        ("grpc://host:8001/path", "no path"),
        ("http://host:8000/?q=1", "no query"),
        ("http://me:secret@host:8000", "headers="),
    ],
)
@pytest.mark.parametrize("client", [DetectionClient, AsyncDetectionClient])
def test_refused(
    client: type[DetectionClient] | type[AsyncDetectionClient], url: str, says: str
) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        client(url)
    assert isinstance(caught.value, ValueError)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": "5"},
        {"retries": -1},
        {"concurrency": 0},
        {"model": ""},
        {"array_encoding": "gif"},
        {"ca_file": "/no/such/file.pem"},
    ],
    ids=str,
)
def test_refused_options(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        DetectionClient("grpc://localhost", **options)  # type: ignore[arg-type]


def test_loopback_is_local() -> None:
    assert ServerAddress.parse("grpc://127.0.0.1:1").is_local
    assert ServerAddress.parse("grpc://localhost:1").is_local
    assert not ServerAddress.parse("grpc://127.example.org:1").is_local
