"""The OpenAPI document."""

from __future__ import annotations

from typing import Any

from detserve import __version__
from gateway.problems import CONTENT_TYPE
from gateway.settings import Settings

__all__ = ["make_document"]

_JSON = "application/json"
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
_FRACTION = {"type": "number", "minimum": 0, "maximum": 1}
_OPTIONS: dict[str, dict[str, Any]] = {
    "score_threshold": {**_FRACTION, "description": "Lowest score to report", "examples": [0.5]},
    "iou_threshold": {
        **_FRACTION,
        "description": "Overlap of two boxes of a class above which the lower one goes",
        "examples": [0.45],
    },
    "max_detections": {
        "type": "integer",
        "minimum": 1,
        "maximum": 2**31 - 1,
        "description": "Most detections of an image",
        "examples": [100],
    },
    "timeout": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 3600,
        "description": "Seconds to wait at most; passed on to the detector",
        "examples": [2.5],
    },
}
_DETECTION = {"label": "cat", "class_id": 15, "score": 0.93, "box_xyxy": [1.2, 2.1, 407.2, 298.1]}
_ANSWER: dict[str, Any] = {
    "detections": [_DETECTION],
    "image": {"width": 451, "height": 300},
    "model": {"name": "detection", "version": "1"},
    "timing": {"inference_ms": 12.3, "total_ms": 13.1},
    "cached": False,
}
_PROBLEMS = {
    400: "An image or an option is missing or no good",
    401: "The API key is missing or not accepted",
    408: "The body did not arrive in time",
    413: "The body or the image is too large",
    415: "The Content-Type is not accepted",
    429: "The client asks more often than it may",
    503: "There is no room at the detector, or it cannot be reached",
    504: "No answer within the time allowed",
}
_RETRY_AFTER = {"schema": {"type": "integer"}, "description": "Seconds until the next try"}


def make_document(settings: Settings, *, keys_required: bool) -> dict[str, Any]:
    """The document of a gateway with these settings."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "DetServe",
            "version": __version__,
            "description": "Object detection. Camera frames go through the WebSocket /live.",
        },
        "paths": {
            "/detect": {"post": _detect()},
            "/batch_detect": {"post": _batch_detect(settings.max_batch)},
            "/health": {"get": _health()},
            "/livez": {"get": _simple("livez", "Whether the gateway runs")},
            "/readyz": {"get": _ready()},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _simple("openapi", "This document")},
        },
        "components": {"schemas": _schemas()},
    }
    if keys_required:
        document["components"]["securitySchemes"] = {
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
        for path in ("/detect", "/batch_detect"):
            document["paths"][path]["post"]["security"] = [{"header": []}, {"bearer": []}]
    return document


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _schemas() -> dict[str, Any]:
    number, text = {"type": "number"}, {"type": "string"}
    natural = {"type": "integer", "minimum": 0}
    box = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
    timing = _object({"inference_ms": number, "total_ms": number})
    members = {
        "detections": {"type": "array", "items": _ref("Detection")},
        "image": _object({"width": natural, "height": natural}),
        "model": _object({"name": text, "version": text}),
        "timing": timing,
        "cached": {"type": "boolean"},
    }
    return {
        "Detection": _object(
            {"label": text, "class_id": natural, "score": _FRACTION, "box_xyxy": box}
        ),
        "Answer": _object({**members, "request_id": text}),
        "BatchEntry": {"oneOf": [_object(members), _object({"error": _ref("Problem")})]},
        "BatchAnswer": _object(
            {
                "results": {"type": "array", "items": _ref("BatchEntry")},
                "timing": timing,
                "request_id": text,
            }
        ),
        "Problem": _object({"type": text, "title": text, "status": natural, "detail": text}),
        "Health": _object({"status": text, "checks": {"type": "object"}}),
    }


def _body(schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    return {"schema": schema} if example is None else {"schema": schema, "example": example}


def _problem(status: int) -> dict[str, Any]:
    example = {
        "type": "about:blank",
        "title": _PROBLEMS[status],
        "status": status,
        "detail": "what was wrong, and what would be right",
    }
    response: dict[str, Any] = {
        "description": _PROBLEMS[status],
        "content": {CONTENT_TYPE: _body(_ref("Problem"), example)},
    }
    if status in (429, 503):
        response["headers"] = {"Retry-After": _RETRY_AFTER}
    return response


def _responses(schema: str, example: Any) -> dict[str, Any]:
    answered = {"description": "Detected", "content": {_JSON: _body(_ref(schema), example)}}
    return {"200": answered, **{str(status): _problem(status) for status in _PROBLEMS}}


def _query() -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "schema": schema} for name, schema in _OPTIONS.items()]


def _detect() -> dict[str, Any]:
    base64 = {"type": "string", "contentEncoding": "base64", "description": "Or a data: URL"}
    file = {"type": "string", "format": "binary"}
    return {
        "operationId": "detect",
        "summary": "Detect the objects in one image",
        "parameters": _query(),
        "requestBody": {
            "required": True,
            "content": {
                _JSON: _body(
                    _object({"image": base64, **_OPTIONS}, *_OPTIONS),
                    {"image": _PIXEL, "score_threshold": 0.5},
                ),
                "multipart/form-data": _body(_object({"image": file, **_OPTIONS}, *_OPTIONS)),
                "image/jpeg": _body(file),
                "image/png": _body(file),
                "application/octet-stream": _body(file),
            },
        },
        "responses": _responses("Answer", {**_ANSWER, "request_id": "4bf92f3577b34da6"}),
    }


def _batch_detect(most: int) -> dict[str, Any]:
    base64 = {"type": "string", "contentEncoding": "base64"}
    file = {"type": "string", "format": "binary"}
    count = {"minItems": 1, "maxItems": most}
    several = {"type": "array", **count}
    example = {
        "results": [_ANSWER],
        "timing": {"inference_ms": 12.3, "total_ms": 13.1},
        "request_id": "4bf92f3577b34da6",
    }
    return {
        "operationId": "batchDetect",
        "summary": "Detect the objects in several images; a bad one is that entry's error",
        "parameters": _query(),
        "requestBody": {
            "required": True,
            "content": {
                _JSON: _body(
                    _object({"images": {**several, "items": base64}, **_OPTIONS}, *_OPTIONS),
                    {"images": [_PIXEL, _PIXEL]},
                ),
                "multipart/form-data": _body(
                    _object({"images": {**several, "items": file}, **_OPTIONS}, *_OPTIONS)
                ),
            },
        },
        "responses": _responses("BatchAnswer", example),
    }


def _simple(name: str, summary: str) -> dict[str, Any]:
    content = {_JSON: _body({"type": "object"})}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}},
    }


def _ready() -> dict[str, Any]:
    operation = _simple("readyz", "Whether the gateway takes requests")
    operation["responses"]["503"] = _problem(503)
    return operation


def _health() -> dict[str, Any]:
    content = {_JSON: _body(_ref("Health"), {"status": "ok", "checks": {}})}
    return {
        "operationId": "health",
        "summary": "What works and what does not, by a real inference",
        "responses": {
            "200": {"description": "Detection works", "content": content},
            "503": {
                "description": "Detection does not work",
                "headers": {"Retry-After": _RETRY_AFTER},
                "content": content,
            },
        },
    }


def _metrics() -> dict[str, Any]:
    content = {"text/plain": _body({"type": "string"})}
    return {
        "operationId": "metrics",
        "summary": "Metrics for Prometheus",
        "responses": {"200": {"description": "The metrics", "content": content}},
    }
