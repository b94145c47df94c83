"""Change a model's configuration in its text: what stays as it is keeps its place and comments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from tritonclient.grpc.model_config_pb2 import ModelConfig

from detserve.repository import RepositoryError
from tuning.pbtxt import Body, Field, locate

__all__ = ["rewrite"]

# New fields come behind those that a configuration has before them, by the project's order.
_ORDER = (
    "name", "platform", "backend", "default_model_filename", "version_policy", "max_batch_size",
    "input", "output", "instance_group", "dynamic_batching", "parameters", "model_warmup",
)  # fmt: skip


def rewrite(text: str, target: ModelConfig) -> str:
    """Make a configuration's text say what is wanted.

    Args:
        text: The configuration as it is.
        target: What it is to say.

    Returns:
        The text with as little changed as can be.

    Raises:
        RepositoryError: The text cannot be changed so.
    """
    current = text_format.Parse(text, ModelConfig())
    try:
        edit = _Edit(text)
        edit.message(locate(text), current, target)
        result = edit.result()
        same = text_format.Parse(result, ModelConfig()) == target
    except (ValueError, text_format.ParseError) as error:
        raise RepositoryError(f"the configuration of {target.name} cannot be edited") from error
    if not same:
        raise RepositoryError(f"the configuration of {target.name} cannot be edited in its text")
    return result


class _Edit:
    """Collects replacements of parts of a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._replacements: list[tuple[int, int, str]] = []

    def result(self) -> str:
        """The text with all of them made."""
        text = self._text
        # From the end to the start. At one place what is removed goes first, and what is inserted
        # last of all comes next: it stays behind the others.
        order = sorted(
            enumerate(self._replacements), key=lambda item: (-item[1][0], -item[1][1], -item[0])
        )
        for _, (start, end, new) in order:
            text = text[:start] + new + text[end:]
        return text

    def message(self, body: Body, old: Any, new: Any) -> None:
        """Make a message's inside say `new`."""
        for descriptor in new.DESCRIPTOR.fields:
            name = descriptor.name
            if descriptor.is_repeated:
                same = _entries(old, descriptor) == _entries(new, descriptor)
            else:
                same = old.HasField(name) == new.HasField(name) if _has(descriptor) else True
                same = same and getattr(old, name) == getattr(new, name)
            if not same:
                self._field(body, descriptor, old, new)

    def _field(self, body: Body, descriptor: FieldDescriptor, old: Any, new: Any) -> None:
        name, fields = descriptor.name, body.named(descriptor.name)
        if descriptor.is_repeated:
            if _is_map(descriptor):
                self._map(body, fields, descriptor, old, new)
            else:
                self._repeated(body, fields, descriptor, old, new)
        elif _is_set(new, descriptor) and fields:
            value = fields[-1].values[-1]
            if value.body is not None:
                self.message(value.body, getattr(old, name), getattr(new, name))
            else:
                self._replace(value.start, value.end, _scalar(new, descriptor))
        elif fields:
            self._remove(fields)
        else:
            self._insert(body, name, _fields_of(new, descriptor))

    def _repeated(
        self, body: Body, fields: list[Field], descriptor: FieldDescriptor, old: Any, new: Any
    ) -> None:
        before, after = getattr(old, descriptor.name), getattr(new, descriptor.name)
        values = [value for field in fields for value in field.values]
        if descriptor.message_type is not None and len(before) == len(after) == len(values):
            for value, one, other in zip(values, before, after, strict=True):
                if value.body is not None:
                    self.message(value.body, one, other)
        elif not fields:
            self._insert(body, descriptor.name, _fields_of(new, descriptor))
        elif not after:
            self._remove(fields)
        else:
            self._replace(fields[0].start, fields[0].end, " ".join(_fields_of(new, descriptor)))
            self._remove(fields[1:])

    def _map(
        self, body: Body, fields: list[Field], descriptor: FieldDescriptor, old: Any, new: Any
    ) -> None:
        before, after = getattr(old, descriptor.name), getattr(new, descriptor.name)
        if any(len(field.values) != 1 for field in fields):  # several in one list: written anew
            self._remove(fields)
            self._insert(body, descriptor.name, _fields_of(new, descriptor))
            return
        found = {self._key(field): field for field in fields}
        for key in sorted({*before, *after}):
            if key not in after:
                self._remove([found[key]])
            elif key not in before:
                self._insert(body, descriptor.name, [_entry(descriptor.name, after, key)])
            elif before[key] != after[key]:
                field = found[key]
                self._replace(field.start, field.end, _entry(descriptor.name, after, key))

    def _key(self, field: Field) -> str:
        body = field.values[0].body
        if body is None or not body.named("key"):
            return ""
        value = body.named("key")[0].values[0]
        # As a string of a message that has one, whose quotes and escapes protobuf reads.
        read = text_format.Parse(f"name: {self._text[value.start : value.end]}", ModelConfig())
        return str(read.name)

    def _replace(self, start: int, end: int, new: str) -> None:
        self._replacements.append((start, end, new))

    def _remove(self, fields: Iterable[Field]) -> None:
        for field in fields:
            start, end = field.start, field.end
            line_start = self._text.rfind("\n", 0, start) + 1
            line_end = self._text.find("\n", end)
            line_end = len(self._text) if line_end < 0 else line_end
            if not self._text[line_start:start].strip() and not self._text[end:line_end].strip():
                start, end = line_start, min(line_end + 1, len(self._text))
            elif self._text[end : end + 1] == " ":
                end += 1
            self._replace(start, end, "")

    def _insert(self, body: Body, name: str, lines: list[str]) -> None:
        """Put fields into a message: on lines of their own where it has lines."""
        if body.start == 0:
            rank = _ORDER.index(name)
            ends = [
                field.end
                for field in body.fields
                if field.name in _ORDER and _ORDER.index(field.name) <= rank
            ]
            after = max(ends, default=0)
            place = self._text.find("\n", after) + 1 or len(self._text)
            gap = "" if place == 0 or self._text[place - 1] == "\n" else "\n"
            self._replace(place, place, gap + "".join(f"{line}\n" for line in lines))
            return
        inside = self._text[body.start : body.end]
        if "\n" in inside:
            place = self._text.rfind("\n", 0, body.end) + 1
            indent = self._text[place : body.end]
            if not indent.strip():
                new = "".join(f"{indent}  {line}\n" for line in lines)
                self._replace(place, place, new)
                return
        gap = "" if inside.endswith(" ") else " "
        self._replace(body.end, body.end, f"{gap}{' '.join(lines)} ")


def _has(descriptor: FieldDescriptor) -> bool:
    return bool(descriptor.has_presence)


def _is_map(descriptor: FieldDescriptor) -> bool:
    kind = descriptor.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _is_set(message: Any, descriptor: FieldDescriptor) -> bool:
    if _has(descriptor):
        return bool(message.HasField(descriptor.name))
    return bool(getattr(message, descriptor.name) != descriptor.default_value)


def _entries(message: Any, descriptor: FieldDescriptor) -> Any:
    value = getattr(message, descriptor.name)
    return dict(value) if _is_map(descriptor) else list(value)


def _fields_of(message: Any, descriptor: FieldDescriptor) -> list[str]:
    """One field of a message as text, a line each time that it stands there."""
    only, name = type(message)(), descriptor.name
    if _is_map(descriptor):
        return [_entry(name, getattr(message, name), key) for key in sorted(getattr(message, name))]
    if descriptor.is_repeated:
        getattr(only, name).extend(getattr(message, name))
    elif descriptor.message_type is not None:
        getattr(only, name).CopyFrom(getattr(message, name))
    else:
        setattr(only, name, getattr(message, name))
    return [_one_line(only)]


def _scalar(message: Any, descriptor: FieldDescriptor) -> str:
    return _fields_of(message, descriptor)[0].partition(":")[2].strip()


def _entry(name: str, entries: Any, key: str) -> str:
    config = ModelConfig()
    getattr(config, name)[key].CopyFrom(entries[key])
    return _one_line(config)


def _one_line(message: Any) -> str:
    text: str = text_format.MessageToString(
        message, as_utf8=True, as_one_line=True, use_short_repeated_primitives=True
    )
    return text.strip()
