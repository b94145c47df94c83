"""What the client asks a model's configuration for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ModelInfo"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model, as its configuration tells it.

    Attributes:
        name: The model's name.
        labels: The names of its classes by class id; empty where it does not tell.
        max_batch_size: Most images of one request, at least 1.
    """

    name: str
    labels: tuple[str, ...] = ()
    max_batch_size: int = 1

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any]) -> ModelInfo:
        """Read Triton's JSON form of a model's configuration.

        The labels are its parameter ``labels``, a JSON list of strings; anything else is taken
        as no labels, for a client can do its work without.
        """
        text = config.get("parameters", {}).get("labels", {}).get("string_value", "[]")
        try:
            labels = json.loads(text)
        except ValueError:
            labels = []
        if not isinstance(labels, list):
            labels = []
        return cls(name, tuple(map(str, labels)), max(1, int(config.get("max_batch_size", 1))))
