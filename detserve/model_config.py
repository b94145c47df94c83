"""Reading a Triton model configuration: string parameters, and threads for an instance."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["own_parameters", "parse_parameters", "string_parameters", "threads_per_instance"]


def string_parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """The ``parameters`` of a model configuration in JSON, as Triton hands it to a backend."""
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}


def own_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Leave out what is addressed to Triton or a backend: by convention, names in capitals."""
    return {name: text for name, text in parameters.items() if name != name.upper()}


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


def threads_per_instance(config: Mapping[str, Any]) -> int:
    """The threads that one instance of a model may use for all instances to fill the machine.

    Args:
        config: The model's configuration in JSON.

    Returns:
        The cores this process may run on, divided by the instances; at least 1.
    """
    instances = sum(group.get("count", 1) for group in config.get("instance_group", [])) or 1
    return max(1, len(os.sched_getaffinity(0)) // instances)
