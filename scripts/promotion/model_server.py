"""A running Triton whose models are loaded and unloaded, over gRPC or HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import tritonclient.grpc
import tritonclient.http
from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from local_server import Control
from promotion.errors import PromotionError

__all__ = ["ModelServer"]

_LOADED = frozenset({"READY", "LOADING", "UNLOADING"})
_LEAVING = frozenset({"UNLOADING"})
_POLL = 0.05  # seconds between looks at whether a model has been unloaded

T = TypeVar("T")


class ModelServer:
    """The model control of one Triton.

    Args:
        url: `grpc://HOST:PORT` or `http://HOST:PORT`; `grpcs` and `https` with TLS.
        header: Name and value of the header that the server wants from who controls its models.
        timeout: How long loading a model, or any other answer, may take, in seconds.

    Raises:
        PromotionError: The address is none.
    """

    def __init__(
        self, url: str, header: tuple[str, str] | None = None, timeout: float = 120.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("grpc", "grpcs", "http", "https") or not parts.hostname:
            raise PromotionError(f"{url} is no address like grpc://127.0.0.1:8001")
        self.url = url
        self._timeout = timeout
        self._is_http = parts.scheme.startswith("http")
        port = parts.port or (8000 if self._is_http else 8001)
        address, tls = f"{parts.hostname}:{port}", parts.scheme.endswith("s")
        prefix = "" if self._is_http else "triton-grpc-protocol-"  # as Triton takes it over gRPC
        # Of every call; the HTTP client has one for all.
        self._limit = {} if self._is_http else {"client_timeout": timeout}
        self._headers = {f"{prefix}{header[0]}".lower(): header[1]} if header else {}
        self._client: Any = (
            tritonclient.http.InferenceServerClient(address, ssl=tls, network_timeout=timeout)
            if self._is_http
            else tritonclient.grpc.InferenceServerClient(address, ssl=tls)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def check_control(self, unloaded: str, control: Control | None) -> None:
        """See that models can be loaded and unloaded, by unloading one that is of no use.

        Args:
            unloaded: A model that nobody needs; it need not be there.
            control: What the server's launcher told of it, if it is one of ours.

        Raises:
            PromotionError: They cannot; the message says what to do.
        """
        try:
            self._unload(unloaded)
        except PromotionError as error:
            text = str(error)
            if "restricted" in text or "forbidden" in text.lower():
                raise PromotionError(
                    f"{self.url} keeps its model control from us ({text}). A server of"
                    " `python -m local_server` lets its own user's programs on its own machine in"
                    + (", and there is none at that address" if control is None else "")
                    + "; of another Triton give the header that it was started with:"
                    " --control-header NAME:VALUE"
                ) from error
            if "not allowed" in text:
                raise PromotionError(
                    f"{self.url} does not let models be loaded one by one ({text}): start it with"
                    " --model-control-mode=explicit and --load-model=ENSEMBLE. In the modes `poll`"
                    " and `none` a version cannot be tried before everybody gets it"
                ) from error
            raise

    def load(self, model: str, config: ModelConfig | None = None) -> None:
        """Load a model; where another configuration of it is loaded, requests go on meanwhile.

        Raises:
            PromotionError: It does not load; what was loaded before still is.
        """
        text = None
        if config is not None:
            text = json_format.MessageToJson(config, preserving_proto_field_name=True)
        self._call(
            lambda: self._client.load_model(
                model, headers=self._headers, config=text, **self._limit
            ),
            f"{model} does not load: ",
        )

    def unload(self, model: str, timeout: float = 0.0) -> bool:
        """Unload a model; requests that it has are answered first.

        Args:
            model: Its name; no error if it is not loaded.
            timeout: How long to wait until it is gone, in seconds.

        Returns:
            Whether it is gone.
        """
        self._unload(model, f"{model} cannot be unloaded: ")
        return self._wait_while(_LOADED, model, timeout)

    def load_if_needed(self, model: str) -> None:
        """Load a model unless it is loaded; one that is on its way out is given the time to go.

        Raises:
            PromotionError: It does not load, or does not go.
        """
        if not self._wait_while(_LEAVING, model, self._timeout):
            raise PromotionError(
                f"{model} has been on its way out for {self._timeout:g} s, with requests that it"
                " does not answer: start the server again"
            )
        if not self.is_loaded(model):
            self.load(model)

    def states(self) -> dict[str, dict[int, str]]:
        """The state of every version of every model: READY, UNLOADED, UNAVAILABLE, ..."""
        index = self._call(
            lambda: (
                self._client.get_model_repository_index(headers=self._headers)
                if self._is_http
                else self._client.get_model_repository_index(
                    headers=self._headers, as_json=True, **self._limit
                )
            )
        )
        entries = index if self._is_http else index.get("models", [])
        states: dict[str, dict[int, str]] = {}
        for entry in entries:
            versions = states.setdefault(entry["name"], {})
            if "state" in entry:
                unloaded = entry.get("reason") == "unloaded"
                version = int(entry.get("version", 0))
                versions[version] = "UNLOADED" if unloaded else entry["state"]
        return states

    def is_loaded(self, model: str) -> bool:
        """Whether a version of a model is loaded, or has requests that it has not answered yet."""
        return self._is_in(_LOADED, model)

    def parameters(self, model: str) -> dict[str, str]:
        """The string parameters of the configuration that a model is served with.

        Raises:
            PromotionError: It is not loaded.
        """
        config = self._call(
            lambda: (
                self._client.get_model_config(model)
                if self._is_http
                else self._client.get_model_config(model, as_json=True, **self._limit)["config"]
            )
        )
        parameters: Mapping[str, Mapping[str, str]] = config.get("parameters", {})
        return {name: value.get("string_value", "") for name, value in parameters.items()}

    def _is_in(self, states: frozenset[str], model: str) -> bool:
        return not states.isdisjoint(self.states().get(model, {}).values())

    def _wait_while(self, states: frozenset[str], model: str, timeout: float) -> bool:
        """Wait until no version of a model is in one of some states; whether that came."""
        deadline = time.monotonic() + timeout
        while self._is_in(states, model):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        return True

    def _unload(self, model: str, prefix: str = "") -> None:
        self._call(
            lambda: self._client.unload_model(model, headers=self._headers, **self._limit), prefix
        )

    def _call(self, call: Callable[[], T], prefix: str = "") -> T:
        try:
            return call()
        except InferenceServerException as error:
            raise PromotionError(f"{prefix}{error.message()}") from error
        except OSError as error:  # the HTTP client's
            raise PromotionError(f"{prefix}{self.url} does not answer: {error}") from error
