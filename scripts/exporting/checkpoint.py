"""Weights: read without running anybody's code, and put into the module without a gap."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from exporting.errors import ExportError, require

__all__ = ["load_weights", "read_state_dict"]

Tensors = dict[str, torch.Tensor]

# Under which training loops put the weights.
USUAL_KEYS = ("state_dict", "model_state_dict", "model", "module", "ema", "net", "weights")
# What data parallelism, compilation and Lightning put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.")
# Counters of BatchNorm that inference does not read, and that old checkpoints lack.
UNREAD = ".num_batches_tracked"
LISTED = 8


def read_state_dict(path: Path, *, key: str | None = None, unsafe_pickle: bool = False) -> Tensors:
    """Read the tensors of a checkpoint.

    Args:
        path: A safetensors file, or what `torch.save` wrote.
        key: Where in it the weights are, with dots between levels (`ema.module`); by default at
            the top or under the one usual key that is there.
        unsafe_pickle: Unpickle whole objects, which runs whatever code the file holds.

    Raises:
        ExportError: The file cannot be read, holds more than tensors, or it is not clear where in
            it the weights are.
    """
    try:
        content = _read(path, unsafe_pickle)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from error
    return _select(path, content, key)


def _read(path: Path, unsafe_pickle: bool) -> object:
    if path.suffix == ".safetensors":
        require(["safetensors"])
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ExportError(f"{path} is no safetensors file: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols: it reads them, or raises
            return torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)
    except pickle.UnpicklingError as error:
        if unsafe_pickle:
            raise ExportError(f"{path} is damaged, or no checkpoint: {error}") from error
        raise ExportError(
            f"{path} is not a file of tensors alone ({_reason(error)}). Save the weights as"
            " safetensors or with torch.save(model.state_dict(), ...). Only if you trust"
            " whoever made the file, --unsafe-pickle reads it as it is: that runs code in it"
        ) from error
    except (AttributeError, ImportError) as error:
        raise ExportError(f"{path} holds objects of code that is not here: {error}") from error
    except (EOFError, RuntimeError, ValueError) as error:
        raise ExportError(f"{path} is damaged, or no checkpoint: {error}") from error


def _reason(error: pickle.UnpicklingError) -> str:
    """The line of PyTorch's long message that says what was found."""
    text = str(error).replace("WeightsUnpickler error:", "")
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (found or [line for line in lines if line] or ["unreadable"])[0].rstrip(".")


def _select(path: Path, content: object, key: str | None) -> Tensors:
    value = content
    for part in key.split(".") if key else ():
        if not isinstance(value, Mapping) or part not in value:
            raise ExportError(f"{path} has nothing under {key!r}; {_contents(value)}")
        value = value[part]
    tensors = _tensors(value)
    if tensors is not None:
        return tensors
    if key is None and isinstance(value, Mapping):
        found = {name: _tensors(value[name]) for name in USUAL_KEYS if name in value}
        usable = {name: tensors for name, tensors in found.items() if tensors is not None}
        if len(usable) == 1:
            return next(iter(usable.values()))
        if usable:
            raise ExportError(
                f"{path} has weights under {', '.join(usable)}: choose with --key (ema is the"
                " average over the training, which usually is meant to be used)"
            )
    raise ExportError(
        f"{path} has no weights {f'under {key!r}' if key else 'at its top'}: {_contents(value)};"
        " say with --key where they are (a.b for b within a)"
    )


def _tensors(value: object) -> Tensors | None:
    if isinstance(value, torch.nn.Module):  # from a pickle
        value = value.state_dict()
    if not isinstance(value, Mapping) or not value:
        return None
    if not all(isinstance(item, torch.Tensor) for item in value.values()):
        return None
    return {str(name): item for name, item in value.items()}


def _contents(value: object) -> str:
    if not isinstance(value, Mapping):
        return f"it holds a {type(value).__name__}"
    names = [str(name) for name in value]
    return f"it has {_listed(names)}" if names else "it is empty"


def load_weights(
    module: torch.nn.Module,
    weights: Tensors,
    *,
    allow_missing: bool = False,
    allow_unexpected: bool = False,
) -> None:
    """Put weights into a module.

    Args:
        module: The module; its parameters and buffers are changed.
        weights: Tensor for every name; a prefix that all have in common and none of the module's
            has is taken off.
        allow_missing: Leave what the weights lack as the factory made it.
        allow_unexpected: Leave out weights that the module has no place for.

    Raises:
        ExportError: Names or shapes do not fit; the message lists which.
    """
    own: Mapping[str, Any] = module.state_dict()
    weights = _without_prefix(weights, own)
    # Tied parameters have several names and need one of them.
    given = {own[name].data_ptr() for name in weights if name in own and own[name].numel()}
    missing = [
        name
        for name, value in own.items()
        if name not in weights and not name.endswith(UNREAD) and value.data_ptr() not in given
    ]
    unexpected = [name for name in weights if name not in own]
    mismatched = [
        f"{name} ({_shape(weights[name])} in the checkpoint, {_shape(own[name])} in the module)"
        for name in weights
        if name in own and weights[name].shape != own[name].shape
    ]
    problems = []
    if mismatched:
        problems.append(f"{len(mismatched)} of another shape: {_listed(mismatched)}")
    if missing and not allow_missing:
        problems.append(f"{len(missing)} missing (--allow-missing): {_listed(missing)}")
    if unexpected and not allow_unexpected:
        problems.append(f"{len(unexpected)} unexpected (--allow-unexpected): {_listed(unexpected)}")
    if problems:
        raise ExportError(
            f"the checkpoint's {len(weights)} tensors do not fit the module's {len(own)}:\n  "
            + "\n  ".join(problems)
        )
    fitting = {name: value for name, value in weights.items() if name in own}
    if not fitting:
        raise ExportError("no tensor of the checkpoint has a name that the module has")
    module.load_state_dict(fitting, strict=False)


def _without_prefix(weights: Tensors, own: Mapping[str, Any]) -> Tensors:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights) and not any(
            name.startswith(prefix) for name in own
        ):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
