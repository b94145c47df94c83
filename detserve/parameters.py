"""Reading the string parameters of a Triton model configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["own_parameters", "parse_parameters"]


def parse_parameters(
    parameters: Mapping[str, str], **types: Callable[[str], Any]
) -> dict[str, Any]:
    """Turn string parameters into typed values.

    Args:
        parameters: Names and their string values.
        types: For every name that is known, what makes the value out of the string.

    Returns:
        The values of the names given.

    Raises:
        ValueError: A name is unknown or a value does not parse; the message names it.
    """
    values = {}
    for name, text in parameters.items():
        if name not in types:
            raise ValueError(f"unknown parameter {name!r}; known: {', '.join(sorted(types))}")
        try:
            values[name] = types[name](text)
        except ValueError:
            wanted = getattr(types[name], "__name__", "value")
            raise ValueError(f"parameter {name!r} must be {wanted}, got {text!r}") from None
    return values


def own_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Leave out what is addressed to Triton: by its convention, names in capitals."""
    return {name: text for name, text in parameters.items() if name != name.upper()}
