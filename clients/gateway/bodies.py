"""The body of a request -> images and options, in memory alone."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from gateway.forms import parse_form
from gateway.options import RequestOptions
from gateway.problems import Problem

__all__ = ["Query", "decode_base64", "parse_batch", "parse_single", "read_body"]

_TYPES = "application/json, multipart/form-data, or an image (image/* or application/octet-stream)"
_BATCH_TYPES = "application/json or multipart/form-data"


@dataclass(frozen=True, slots=True)
class Query:
    """What a request asks: encoded images, each one or why there is none, and the options."""

    images: tuple[bytes | Problem, ...]
    options: RequestOptions
    body_bytes: int


async def read_body(request: Request, max_bytes: int, timeout: float) -> bytes:
    """Receive the body.

    Raises:
        Problem: 413, it is larger than allowed, and was not read on; 408, it came too slowly.
        ClientDisconnect: The client has gone.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise Problem(
            408, f"the body did not arrive within {timeout:g} s", headers={"Connection": "close"}
        ) from None


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, f"the body is larger than the {max_bytes / 1e6:g} MB that are accepted")


def parse_single(request: Request, body: bytes, max_image_bytes: int) -> Query:
    """The one image of /detect.

    Raises:
        Problem: 400, 413 or 415: what is wrong.
    """
    options = RequestOptions.from_texts(_query(request), request.headers)
    kind, parameters = _media_type(request)
    if kind == "application/json":
        document = _json_object(body, "image")
        image = decode_base64(_taken(document, "image"), "image")
        options = options.over(RequestOptions.from_json(document))
    elif kind == "multipart/form-data":
        files, fields = parse_form(body, parameters)
        if len(files) != 1 or files[0][0] != "image":
            names = ", ".join(name for name, _ in files) or "none"
            raise Problem(400, f"send one file in the field 'image'; there are: {names[:200]}")
        image = files[0][1]
        options = options.over(RequestOptions.from_texts(fields, {}))
    elif kind.startswith("image/") or kind == "application/octet-stream":
        image = body
    else:
        raise _unsupported(kind, _TYPES)
    if isinstance(outcome := _checked(image, max_image_bytes), Problem):
        raise outcome
    return Query((outcome,), options, len(body))


def parse_batch(request: Request, body: bytes, max_image_bytes: int, max_images: int) -> Query:
    """The images of /batch_detect; one that is no good is its own problem.

    Raises:
        Problem: 400, 413 or 415: what is wrong with the whole.
    """
    options = RequestOptions.from_texts(_query(request), request.headers)
    kind, parameters = _media_type(request)
    images: list[bytes | Problem] = []
    if kind == "application/json":
        document = _json_object(body, "images")
        texts = _taken(document, "images")
        if not isinstance(texts, list):
            raise Problem(400, "'images' must be a list of base64 strings")
        _check_count(len(texts), max_images)
        options = options.over(RequestOptions.from_json(document))
        for text in texts:
            try:
                images.append(decode_base64(text, "the image"))
            except Problem as problem:
                images.append(problem)
    elif kind == "multipart/form-data":
        files, fields = parse_form(body, parameters)
        if any(name != "images" for name, _ in files):
            raise Problem(400, "send the files in repeated fields 'images', and no other files")
        _check_count(len(files), max_images)
        options = options.over(RequestOptions.from_texts(fields, {}))
        images += [content for _, content in files]
    else:
        raise _unsupported(kind, _BATCH_TYPES)
    checked = [
        image if isinstance(image, Problem) else _checked(image, max_image_bytes)
        for image in images
    ]
    return Query(tuple(checked), options, len(body))


def decode_base64(text: object, name: str) -> bytes:
    """The bytes of base64 text, which may have a ``data:`` URL's prefix.

    Raises:
        Problem: 400, it is none.
    """
    if not isinstance(text, str):
        raise Problem(400, f"{name} must be a string with the image in base64")
    if text.startswith("data:"):
        prefix, comma, text = text.partition(",")
        if not comma or not prefix.endswith(";base64"):
            raise Problem(400, f"{name}: a data: URL must be in base64 (data:image/...;base64,...)")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, f"{name} is not base64") from None


def _query(request: Request) -> dict[str, str]:
    items = request.query_params.multi_items()
    texts = dict(items)
    if len(texts) != len(items):
        raise Problem(400, "a parameter of the query is there twice")
    return texts


def _checked(image: bytes, max_bytes: int) -> bytes | Problem:
    if not image:
        return Problem(400, "the image is empty (0 bytes)")
    if len(image) > max_bytes:
        return Problem(413, f"the image is larger than the {max_bytes / 1e6:g} MB accepted")
    return image


def _check_count(count: int, most: int) -> None:
    if count == 0:
        raise Problem(400, "'images' is empty or missing: send at least one image")
    if count > most:
        raise Problem(400, f"{count} images in one request: at most {most} are accepted")


def _media_type(request: Request) -> tuple[str, str]:
    text = request.headers.get("content-type", "")
    kind, _, _ = text.partition(";")
    return kind.strip().lower(), text


def _unsupported(kind: str, accepted: str) -> Problem:
    shown = repr(kind[:100]) if kind else "no Content-Type"
    return Problem(415, f"{shown} is not accepted: send {accepted}")


def _json_object(body: bytes, wanted: str) -> dict[str, Any]:
    try:
        document = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON (in UTF-8)") from None
    if not isinstance(document, dict):
        raise Problem(400, f"the body must be a JSON object with {wanted!r}")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _taken(document: dict[str, Any], name: str) -> Any:
    if name not in document:
        raise Problem(400, f"{name!r} is missing from the body")
    return document.pop(name)
