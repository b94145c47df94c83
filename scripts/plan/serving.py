"""Whether a repository's configuration serves a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from detserve.repository import RepositoryError, read_model_config
from plan.builder import Tensor
from plan.errors import PlanError

__all__ = ["check_config", "config_of", "differences"]

# TensorRT's names of types, where Triton has others.
_TRITON_TYPES = {"FLOAT": "FP32", "HALF": "FP16"}


def config_of(output: Path) -> Path | None:
    """The configuration beside the version folder that a file is written into, if there is one."""
    path = output.absolute().parent.parent / "config.pbtxt"
    return path if output.absolute().parent.name.isdecimal() and path.is_file() else None


def check_config(
    path: Path, tensors: Sequence[Tensor], batch: tuple[int, int, int], file_name: str
) -> None:
    """See that a configuration serves a plan.

    Args:
        path: A `config.pbtxt`.
        tensors: The network's inputs and outputs.
        batch: The plan's profile.
        file_name: What the plan's file is called.

    Raises:
        PlanError: The configuration cannot be read, or says something else than the plan has.
    """
    if path.name != "config.pbtxt":
        raise PlanError(f"{path} is no model's configuration: name a config.pbtxt")
    try:
        config = read_model_config(path.parent)
    except RepositoryError as error:
        raise PlanError(str(error)) from error
    found = differences(config, tensors, batch, file_name)
    if found:
        raise PlanError(f"{path} does not serve this plan:\n  " + "\n  ".join(found))


def differences(
    config: ModelConfig, tensors: Sequence[Tensor], batch: tuple[int, int, int], file_name: str
) -> list[str]:
    """What a configuration says otherwise than a plan, each with both sides."""
    found = []
    served_by = config.backend or config.platform
    if (config.backend, config.platform) not in (
        ("tensorrt", ""),
        ("", "tensorrt_plan"),
        ("tensorrt", "tensorrt_plan"),
    ):
        found.append(f'it is for {served_by or "no backend"}; a plan needs backend: "tensorrt"')
    wanted_file = config.default_model_filename or "model.plan"
    if file_name != wanted_file:
        found.append(f"it loads {wanted_file}; this is {file_name}")
    least, _, greatest = batch
    if not least <= config.max_batch_size <= greatest:
        found.append(
            f"max_batch_size is {config.max_batch_size}; the plan's profile goes from {least} to"
            f" {greatest}"
        )
    elif least > 1:
        found.append(f"requests of one image are refused: the plan's profile begins at {least}")
    for kind, is_input, declared in (
        ("input", True, {t.name: t for t in config.input}),
        ("output", False, {t.name: t for t in config.output}),
    ):
        own = {t.name: t for t in tensors if t.is_input == is_input}
        found += [f"{kind} {name} is not in the plan" for name in declared if name not in own]
        for name, tensor in own.items():
            if name not in declared:
                found.append(f"{kind} {name} of the plan is missing")
                continue
            said_type = DataType.Name(declared[name].data_type).removeprefix("TYPE_")
            own_type = _TRITON_TYPES.get(tensor.dtype, tensor.dtype)
            if said_type != own_type:
                found.append(f"{kind} {name} is TYPE_{said_type}; in the plan TYPE_{own_type}")
            said_dims, own_dims = list(declared[name].dims), list(tensor.dims[1:])
            if said_dims != own_dims:
                found.append(f"{kind} {name} has dims {said_dims}; in the plan {own_dims}")
    return found
