"""The module to export, out of the user's own code."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from exporting.errors import ExportError

__all__ = ["build_module"]


def build_module(spec: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    """Call a factory and return its module, for inference on the CPU in float32.

    The current directory is importable, as for `python -m`. What the factory itself raises is the
    user's to see, with its traceback.

    Args:
        spec: `package.module:factory`; the factory may be a class or lie deeper (`module:a.b`).
        arguments: Keyword arguments for the factory.

    Raises:
        ExportError: There is no such factory, it does not take those arguments, or what it returns
            is no module.
    """
    factory = _find(spec)
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ExportError(
            f"{spec} cannot be called with --factory-arg"
            f" {' '.join(f'{name}={value!r}' for name, value in arguments.items()) or '(none)'}:"
            f" {error}; it is {_name(factory)}{inspect.signature(factory)}"
        ) from error
    module = factory(**arguments)
    if not isinstance(module, torch.nn.Module):
        raise ExportError(
            f"{spec} returned {type(module).__module__}.{type(module).__qualname__}, not a"
            " torch.nn.Module: give a function that builds the network and returns it"
        )
    return module.cpu().float().eval().requires_grad_(False)


def _find(spec: str) -> Callable[..., Any]:
    name, colon, path = spec.partition(":")
    if not (name and colon and path):
        raise ExportError(f"{spec!r} is no factory: write package.module:function")
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ExportError(
                f"there is no module {error.name!r}: modules are looked for in {directory} and"
                " where Python finds its packages (PYTHONPATH)"
            ) from error
        raise ExportError(f"{name} needs a package that is not there: {error}") from error
    except ImportError as error:
        raise ExportError(f"{name} cannot be imported: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(found).items() if _is_factory(key, value, found)]
            raise ExportError(
                f"{_name(found)} has no {part!r}"
                + (f"; it has {', '.join(sorted(public)[:12])}" if public else "")
            )
        found = getattr(found, part)
    if not callable(found):
        raise ExportError(f"{spec} is a {type(found).__name__}, not a function or a class")
    if isinstance(found, torch.nn.Module):
        # Modules are callable, but with images.
        raise ExportError(f"{spec} is a module itself: give a function that returns it")
    return found  # type: ignore[no-any-return]


def _is_factory(name: str, value: object, holder: object) -> bool:
    return (
        not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == getattr(holder, "__name__", None)
    )


def _name(value: object) -> str:
    return str(getattr(value, "__name__", value))
