"""TLS for real: gRPC with Triton's own, HTTP through a proxy that ends it, as in production."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from detection_client import (
    AsyncDetectionClient,
    DetectionClient,
    DetectionClientError,
    InvalidInputError,
    ServerUnavailableError,
)
from local_server import TritonServer
from photos import jpeg
from tests.server.conftest import on_any_ports

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


class Certificates:
    """An authority, and what it has signed for a server and a client."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._openssl(
            *("req", "-x509", *CURVE, "-nodes", "-days", "2"),
            *("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority"),
        )
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1\n"
        (folder / "names").write_text(names)
        for owner in ("server", "client"):
            self._openssl(
                *("req", *CURVE, "-nodes", "-keyout", f"{owner}.key"),
                *("-out", f"{owner}.csr", "-subj", f"/CN={owner}"),
            )
            self._openssl(
                *("x509", "-req", "-in", f"{owner}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
                *("-CAcreateserial", "-out", f"{owner}.pem", "-days", "2", "-extfile", "names"),
            )

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)

    def __getattr__(self, name: str) -> Path:
        """``server_pem``, ``client_key`` and so on."""
        return self._folder / name.replace("_", ".")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return Certificates(tmp_path_factory.mktemp("tls"))


@contextmanager
def tls_proxy(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Ends TLS and hands everything on to a port of this machine; yields its own port."""
    loop = asyncio.new_event_loop()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass  # one side has gone
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    loop.set_exception_handler(lambda _loop, _context: None)  # refused handshakes
    listening = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def end() -> None:
        listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # connections end in callbacks

    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def grpcs_url(repository: Path, certificates: Certificates) -> Iterator[str]:
    arguments = [
        "--grpc-use-ssl=1",
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={certificates.server_pem}",
        f"--grpc-server-key={certificates.server_key}",
        f"--grpc-root-cert={certificates.ca_pem}",
    ]
    with on_any_ports(repository, extra_arguments=arguments) as server:
        yield server.grpc_url.replace("grpc:", "grpcs:")


@pytest.fixture(scope="module")
def https_url(server: TritonServer, certificates: Certificates) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_pem, certificates.server_key)
    context.load_verify_locations(certificates.ca_pem)
    context.verify_mode = ssl.CERT_REQUIRED
    with tls_proxy(server.ports.http, context) as port:
        yield f"https://127.0.0.1:{port}"


@pytest.fixture(params=["grpcs_url", "https_url"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def files(certificates: Certificates) -> dict[str, Any]:
    return {
        "ca_file": certificates.ca_pem,
        "cert_file": certificates.client_pem,
        "key_file": certificates.client_key,
    }


def test_with_a_certificate_on_both_sides(url: str, certificates: Certificates) -> None:
    with DetectionClient(url, **files(certificates)) as client:
        assert [found.label for found in client.detect(jpeg("chelsea"))] == ["cat"]

    async def ask() -> list[str]:
        async with AsyncDetectionClient(url, **files(certificates)) as client:
            return [found.label for found in await client.detect(jpeg("chelsea"))]

    assert asyncio.run(ask()) == ["cat"]


def test_without_the_clients_certificate(url: str, certificates: Certificates) -> None:
    with (
        DetectionClient(url, ca_file=certificates.ca_pem, retries=0) as client,
        pytest.raises(DetectionClientError) as refused,
    ):
        client.detect(jpeg("chelsea"), timeout=10)
    assert isinstance(refused.value, ServerUnavailableError)


def test_an_authority_that_did_not_sign(url: str, certificates: Certificates) -> None:
    options = {**files(certificates), "ca_file": certificates.client_pem}
    with (
        DetectionClient(url, **options, retries=0) as client,
        pytest.raises(ServerUnavailableError, match="certificate is not trusted"),
    ):
        client.detect(jpeg("chelsea"), timeout=10)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ca_file": "nowhere.pem"}, "ca_file: there is no file nowhere.pem"),
        ({"cert_file": "client.pem"}, "cert_file and key_file go together"),
        ({"cert_file": "client.pem", "key_file": "server.key"}, "are no certificate with its own"),
        ({"cert_file": "client.key", "key_file": "client.pem"}, "are no certificate with its own"),
        ({"ca_file": "names", "cert_file": "client.pem", "key_file": "client.key"}, "ca_file"),
    ],
)
def test_files_that_are_no_good(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str
) -> None:
    monkeypatch.chdir(certificates.ca_pem.parent)
    for url in ("grpcs://localhost:1", "https://localhost:1"):
        with pytest.raises(InvalidInputError, match=says):
            DetectionClient(url, **given)  # type: ignore[arg-type]


def test_a_certificate_needs_an_address_with_tls(certificates: Certificates) -> None:
    with pytest.raises(InvalidInputError, match="write grpcs:// or https://"):
        DetectionClient("grpc://localhost:1", **files(certificates))
