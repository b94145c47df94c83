"""multipart/form-data, parsed in memory: an upload is never spooled to disk."""

from __future__ import annotations

import logging

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.problems import Problem

__all__ = ["parse_form"]

# It warns of what clients send, which is answered with a problem.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_MOST_PARTS = 300
_LONGEST_FIELD = 1000


class _Parts:
    """What the parser finds: the parts, each with its headers."""

    def __init__(self) -> None:
        self.parts: list[tuple[dict[bytes, bytes], list[bytes]]] = []
        self.ended = False
        self._name = b""
        self._value = b""

    def begin(self) -> None:
        if len(self.parts) >= _MOST_PARTS:
            raise Problem(413, f"the form has more than {_MOST_PARTS} parts")
        self.parts.append(({}, []))

    def data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1][1].append(data[start:end])

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self.parts[-1][0][self._name.lower()] = self._value
        self._name = self._value = b""

    def end(self) -> None:
        self.ended = True


def parse_form(body: bytes, content_type: str) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    """The files of a form, each with its field's name, and the other fields.

    A part with a file name or a type of its own is a file, and so is one named ``image`` or
    ``images``, for not every client sends a file name.

    Raises:
        Problem: 400, the form is malformed.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Problem(400, "multipart/form-data needs a boundary in its Content-Type")
    found = _Parts()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": found.begin,
                "on_part_data": found.data,
                "on_header_field": found.header_field,
                "on_header_value": found.header_value,
                "on_header_end": found.header_end,
                "on_end": found.end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise Problem(400, "the form is malformed") from None
    if not found.ended:
        raise Problem(400, "the form is cut short")
    files: list[tuple[str, bytes]] = []
    fields: dict[str, str] = {}
    for headers, chunks in found.parts:
        disposition, options = parse_options_header(headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise Problem(400, "a part of the form has no name")
        name = options[b"name"].decode("utf-8", "replace")
        content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if b"filename" in options or name in ("image", "images"):
            files.append((name, content))
        elif name in fields or len(content) > _LONGEST_FIELD:
            raise Problem(400, f"the field {name[:60]!r} is there twice, or too long")
        else:
            fields[name] = content.decode("utf-8", "replace")
    return files, fields
