"""What Triton offers beyond inference is closed to clients, over both protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from detection_client import DetectionClient
from local_server import TritonServer
from photos import jpeg
from tests.server.conftest import on_any_ports

MEMORY: dict[str, Any] = {"key": "/detserve-none", "offset": 0, "byte_size": 8}
HTTP = {
    "load": ("v2/repository/models/detector/load", {}),
    "unload": ("v2/repository/models/detector/unload", {}),
    "index": ("v2/repository/index", {}),
    "map memory": ("v2/systemsharedmemory/region/mine/register", MEMORY),
    "unmap memory": ("v2/systemsharedmemory/unregister", {}),
    "unmap GPU memory": ("v2/cudasharedmemory/unregister", {}),
    "trace": ("v2/trace/setting", {"trace_level": ["TIMESTAMPS"], "trace_file": "/tmp/mine"}),
    "trace a model": ("v2/models/detector/trace/setting", {"trace_rate": "1"}),
    "log": ("v2/logging", {"log_file": "/tmp/mine"}),
}
Grpc = Callable[[triton_grpc.InferenceServerClient], object]
GRPC: dict[str, Grpc] = {
    "load": lambda client: client.load_model("detector"),
    "unload": lambda client: client.unload_model("detector"),
    "index": lambda client: client.get_model_repository_index(),
    "map memory": lambda client: client.register_system_shared_memory("mine", "/none", 8),
    "unmap memory": lambda client: client.unregister_system_shared_memory(),
    "unmap GPU memory": lambda client: client.unregister_cuda_shared_memory(),
    "trace": lambda client: client.update_trace_settings(settings={"trace_file": "/tmp/mine"}),
    "trace a model": lambda client: client.get_trace_settings("detector"),
    "log": lambda client: client.update_log_settings({"log_file": "/tmp/mine"}),
}


@pytest.fixture(scope="module")
def closed(repository: Path) -> Iterator[TritonServer]:
    with on_any_ports(repository) as running:
        yield running
        with DetectionClient(running.grpc_url) as client:  # after all that was tried
            assert {found.label for found in client.detect(jpeg("coffee"))} >= {"cup"}


@pytest.mark.parametrize("name", HTTP)
def test_http(closed: TritonServer, name: str) -> None:
    path, body = HTTP[name]
    answer = requests.post(f"{closed.http_url}/{path}", json=body, timeout=10)
    assert (answer.status_code, "restricted" in answer.text) == (403, True)


@pytest.mark.parametrize("name", GRPC)
def test_grpc(closed: TritonServer, name: str) -> None:
    with triton_grpc.InferenceServerClient(closed.grpc_url.removeprefix("grpc://")) as client:
        with pytest.raises(InferenceServerException, match="restricted") as refused:
            GRPC[name](client)
        assert refused.value.status() == "StatusCode.UNAVAILABLE"


def test_what_is_opened_is_open_and_no_more(repository: Path) -> None:
    with (
        on_any_ports(repository, allow_shared_memory=True, allow_model_control=True) as server,
        triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client,
    ):
        assert client.get_system_shared_memory_status(as_json=True) == {}
        index = client.get_model_repository_index(as_json=True)
        assert {model["name"] for model in index["models"]} >= {"detection", "detector"}
        for name in ("trace", "log"):
            with pytest.raises(InferenceServerException, match="restricted"):
                GRPC[name](client)
