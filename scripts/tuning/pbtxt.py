"""Where the fields of a protobuf text lie, so that they can be changed where they stand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["Body", "Field", "Value", "locate"]

_TOKEN = re.compile(
    r"""(?P<blank>\s+|\#[^\n]*)|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<mark>[{}<>\[\]:;,])|(?P<word>[^\s{}<>\[\]:;,"'\#]+)"""
)
_CLOSING = {"{": "}", "<": ">"}


@dataclass
class Body:
    """The inside of a message.

    Attributes:
        start: Behind its opening brace.
        end: Before its closing one.
        fields: What stands there, in order.
    """

    start: int
    end: int = 0
    fields: list[Field] = field(default_factory=list)

    def named(self, name: str) -> list[Field]:
        """The fields of a name: a repeated one may stand several times."""
        return [one for one in self.fields if one.name == name]


@dataclass(frozen=True)
class Value:
    """A value: a message has a body, a scalar has none."""

    start: int
    end: int
    body: Body | None = None


@dataclass(frozen=True)
class Field:
    """A field.

    Attributes:
        name: Its name.
        start: Where its name begins.
        end: Where its value ends; a separator behind it is part of it.
        values: One, or those of a list in brackets.
        is_list: Whether it is written in brackets.
    """

    name: str
    start: int
    end: int
    values: list[Value]
    is_list: bool


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def locate(text: str) -> Body:
    """Find the fields of a text that `google.protobuf.text_format` can parse.

    Raises:
        ValueError: It cannot be read.
    """
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._length = len(text)
        self._tokens: list[_Token] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise ValueError(f"unexpected {text[position]!r} at character {position}")
            if match.lastgroup != "blank":
                self._tokens.append(
                    _Token(match.lastgroup, match.group(), match.start(), match.end())
                )
            position = match.end()
        self._next = 0

    def read(self) -> Body:
        body = self._body(0, "")
        body.end = self._length
        return body

    def _peek(self) -> str:
        return self._tokens[self._next].text if self._next < len(self._tokens) else ""

    def _take(self) -> _Token:
        if self._next == len(self._tokens):
            raise ValueError("the text ends too early")
        self._next += 1
        return self._tokens[self._next - 1]

    def _body(self, start: int, closing: str) -> Body:
        body = Body(start)
        while self._peek() != closing:
            body.fields.append(self._field())
        return body

    def _field(self) -> Field:
        name = self._take()
        if name.kind != "word":
            raise ValueError(f"a field's name is wanted at character {name.start}: {name.text!r}")
        if self._peek() == ":":
            self._take()
        if is_list := self._peek() == "[":
            values, end = self._list()
        else:
            values = [self._value()]
            end = values[0].end
        if self._peek() in (",", ";"):
            end = self._take().end
        return Field(name.text, name.start, end, values, is_list)

    def _list(self) -> tuple[list[Value], int]:
        self._take()
        values: list[Value] = []
        while self._peek() != "]":
            values.append(self._value())
            if self._peek() == ",":
                self._take()
        return values, self._take().end

    def _value(self) -> Value:
        first = self._take()
        if first.text in _CLOSING:
            body = self._body(first.end, _CLOSING[first.text])
            last = self._take()
            body.end = last.start
            return Value(first.start, last.end, body)
        end = first.end
        if first.kind == "string":  # one after another are one
            while self._next < len(self._tokens) and self._tokens[self._next].kind == "string":
                end = self._take().end
        elif first.kind != "word":
            raise ValueError(f"a value is wanted at character {first.start}: {first.text!r}")
        return Value(first.start, end)
