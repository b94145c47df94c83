"""Users that ask the gateway over REST."""
# mypy: disable-error-code="misc"

from __future__ import annotations

import json

from locust import tag, task

from detection_client import QueueFullError
from detection_client._status import error_from_status
from loadtest.images import TestImage
from loadtest.users.http_user import HttpUserBase

__all__ = ["RestUser"]

_BATCH = 4
_BOUNDARY = "detserve-loadtest-7d1c"
# Of the gateway's 503s those that say that there is more work than it takes.
_REFUSALS = ("more requests than can be served", "more work than it takes")


class RestUser(HttpUserBase):
    """Asks for one image mostly, now and then for several together."""

    abstract = True
    protocol = "rest"

    @tag("rest")  # type: ignore[untyped-decorator]
    @task(4)  # type: ignore[untyped-decorator]
    def detect(self) -> None:
        """One image."""
        self.request("/detect", self._detect)

    @tag("rest")  # type: ignore[untyped-decorator]
    @task(1)  # type: ignore[untyped-decorator]
    def batch_detect(self) -> None:
        """Several images in a form."""
        self.request("/batch_detect", self._batch_detect, _BATCH)

    def _detect(self, images: list[TestImage]) -> int:
        return len(self._post("/detect", images[0].data, "image/jpeg"))

    def _batch_detect(self, images: list[TestImage]) -> int:
        parts = [
            b'--%b\r\nContent-Disposition: form-data; name="images"; filename="%d.jpg"\r\n'
            b"Content-Type: image/jpeg\r\n\r\n%b\r\n" % (_BOUNDARY.encode(), number, image.data)
            for number, image in enumerate(images)
        ]
        form = b"".join(parts) + b"--%b--\r\n" % _BOUNDARY.encode()
        body = self._post("/batch_detect", form, f"multipart/form-data; boundary={_BOUNDARY}")
        for result in json.loads(body)["results"]:
            if "error" in result:
                self._raise(int(result["error"]["status"]), str(result["error"]["detail"]))
        return len(body)

    def _post(self, path: str, body: bytes, media_type: str) -> bytes:
        headers = {"Content-Type": media_type}
        if self.options.api_key:
            headers["X-API-Key"] = self.options.api_key
        status, answer = self.post(self.options.gateway, path, body, headers)
        if status != 200:
            try:
                detail = str(json.loads(answer)["detail"])
            except (ValueError, KeyError, TypeError):
                detail = answer[:200].decode(errors="replace")
            self._raise(status, detail)
        return answer

    def _raise(self, status: int, detail: str) -> None:
        if status == 503 and any(text in detail for text in _REFUSALS):
            raise QueueFullError(f"{self.options.gateway}: {detail}")
        raise error_from_status(
            str(status), detail, url=self.options.gateway, timeout=self.options.request_timeout
        )
