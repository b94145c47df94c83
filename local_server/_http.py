"""The few requests to Triton that starting and supervising it need.

Over HTTP with the standard library: no gRPC threads in a process that starts others, and nothing
to import that takes time.
"""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple


class TritonError(Exception):
    """Triton answered with an error.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def refused(self) -> bool:
        """Whether the request was refused as wrong: by a model that works."""
        return self.status == 400

    @property
    def busy(self) -> bool:
        """Whether there was no room for the request."""
        return self.status == 503


class Statistics(NamedTuple):
    """What a model has done since it was loaded.

    Attributes:
        answered: Requests it has answered.
        failed: Requests it has answered with an error.
        duration_ns: How long those it has answered took, all together.
    """

    answered: int
    failed: int
    duration_ns: int


class Connection:
    """Where a Triton is, and what it takes to control its models.

    Each request has a connection of its own, so one object serves any number of threads.

    Args:
        host: Address of the server.
        port: Its HTTP port.
        secret: The secret for loading and unloading models.
    """

    SECRET_HEADER = "detserve-control"

    def __init__(self, host: str, port: int, secret: str | None = None) -> None:
        self._host = host
        self._port = port
        self._headers = {self.SECRET_HEADER: secret} if secret else {}

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        timeout: float = 5.0,
    ) -> bytes:
        """Send one request.

        Args:
            method: GET or POST.
            path: The path, with its leading slash.
            body: What to send.
            headers: Further headers.
            timeout: For connecting and for each wait for data, in seconds.

        Returns:
            The body of the answer.

        Raises:
            TritonError: If the answer is an error.
            OSError: If there is no answer: TimeoutError, ConnectionError.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.request(method, path, body, {**self._headers, **(headers or {})})
            response = connection.getresponse()
            answer = response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise TritonError(response.status, _message(answer))
        return answer

    def ready(self) -> bool:
        """Whether Triton says that it is ready."""
        try:
            self.request("GET", "/v2/health/ready", timeout=2)
        except (OSError, TritonError):
            return False
        return True

    def models(self) -> dict[str, str]:
        """The models of the repository, with their state: READY, UNAVAILABLE, LOADING, ...

        UNLOADED stands for a model that somebody has unloaded, or that was never loaded. A model
        of several versions has the state of the best of them.
        """
        states: dict[str, str] = {}
        for model in self.index():
            state = model.get("state", "UNLOADED")
            if model.get("reason") == "unloaded":
                state = "UNLOADED"
            if state == "READY" or states.get(model["name"], "UNLOADED") == "UNLOADED":
                states[model["name"]] = state
        return states

    def index(self) -> list[dict[str, str]]:
        """Every version of every model, as Triton lists them: name, version, state, reason."""
        index: list[dict[str, str]] = json.loads(
            self.request("POST", "/v2/repository/index", b"{}", timeout=2)
        )
        return index

    def config(self, model: str) -> dict[str, Any]:
        """The configuration of a model, as Triton completed it."""
        config: dict[str, Any] = json.loads(self.request("GET", f"/v2/models/{model}/config"))
        return config

    def statistics(self, model: str) -> Statistics:
        """What a model has done so far."""
        document = json.loads(self.request("GET", f"/v2/models/{model}/stats", timeout=2))
        found = [version["inference_stats"] for version in document["model_stats"]]
        # An answer from the response cache is none of the model's.
        return Statistics(
            answered=sum(one["success"]["count"] - one["cache_hit"]["count"] for one in found),
            failed=sum(one["fail"]["count"] for one in found),
            duration_ns=sum(one["success"]["ns"] - one["cache_hit"]["ns"] for one in found),
        )

    def load(self, model: str, config: dict[str, Any] | None, timeout: float) -> None:
        """Load a model, or replace a loaded one by one with another configuration.

        Args:
            model: Its name.
            config: The configuration to use in place of the repository's.
            timeout: How long it may take, in seconds.
        """
        body = json.dumps({"parameters": {"config": json.dumps(config)}} if config else {})
        path = f"/v2/repository/models/{model}/load"
        self.request("POST", path, body.encode(), timeout=timeout)

    def unload(self, model: str, timeout: float) -> None:
        """Unload a model."""
        self.request("POST", f"/v2/repository/models/{model}/unload", b"{}", timeout=timeout)


def _message(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace").strip() or "no message"
