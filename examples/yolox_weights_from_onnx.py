"""Get the weights of a YOLOX back out of an ONNX file, as a safetensors checkpoint.

    python -m examples.yolox_weights_from_onnx yolox_nano.onnx yolox_nano.safetensors

For models of which only the ONNX file is left: it is a module again, to be pruned, trained further
or exported in another size. Batch normalisation, which the export folded into the convolutions,
becomes the identity.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from safetensors.torch import save_file

from examples.yolox import factory

__all__ = ["recover"]


def recover(model: onnx.ModelProto, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Take the weights of the convolutions in the order in which they run.

    Args:
        model: YOLOX as its own exporter writes it.
        module: The same architecture.

    Returns:
        A complete state dict for the module, which is changed too.

    Raises:
        ValueError: The file is of another architecture.
    """
    constants = {item.name: item for item in model.graph.initializer}
    stored = [
        [torch.from_numpy(numpy_helper.to_array(constants[name]).copy()) for name in node.input[1:]]
        for node in model.graph.node
        if node.op_type == "Conv"
    ]
    convolutions = _in_running_order(module)
    if len(convolutions) != len(stored):
        raise ValueError(
            f"the file has {len(stored)} convolutions, the module {len(convolutions)}: choose the"
            " size with --depth, --width and --depthwise"
        )
    state = module.state_dict()
    for name, (weight, bias) in zip(convolutions, stored, strict=True):
        if state[f"{name}.weight"].shape != weight.shape:
            raise ValueError(
                f"{name} is {tuple(weight.shape)} in the file and"
                f" {tuple(state[f'{name}.weight'].shape)} in the module"
            )
        state[f"{name}.weight"] = weight
        if f"{name}.bias" in state:
            state[f"{name}.bias"] = bias
            continue
        norm = name.removesuffix("conv") + "bn"
        eps = module.get_submodule(norm).eps
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.full_like(bias, 1 - eps)  # a root of 1 with eps added
    module.load_state_dict(state)
    return {name: value.contiguous() for name, value in state.items()}


def _in_running_order(module: torch.nn.Module) -> list[str]:
    order: list[str] = []
    hooks = [
        part.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        module.eval()(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return order


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="ONNX file as YOLOX's own exporter writes it")
    parser.add_argument("checkpoint", type=Path, help="safetensors file to write")
    parser.add_argument("--depth", type=float, default=0.33, help="default 0.33: nano, tiny, s")
    parser.add_argument("--width", type=float, default=0.25, help="default 0.25: nano")
    parser.add_argument(
        "--depthwise", action=argparse.BooleanOptionalAction, default=True, help="only nano is"
    )
    parser.add_argument("--classes", type=int, default=80, help="default 80")
    args = parser.parse_args(argv)
    try:
        module = factory(args.depth, args.width, depthwise=args.depthwise, classes=args.classes)
        save_file(recover(onnx.load(args.model), module), args.checkpoint)
    except (DecodeError, KeyError, OSError, ValueError) as error:
        print(f"error: {args.model}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.checkpoint}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
