"""TensorRT's builder: ONNX in, plan out, every failure an error that names its cause."""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detserve.engines._tensorrt_log import shared_log
from plan.errors import PlanError, explain, without_noise
from plan.options import PlanOptions
from plan.progress import make_progress

__all__ = ["MODULES", "PlanBuilder", "Tensor", "load_module"]

MODULES = ("tensorrt", "tensorrt_rtx")
_OLDEST_MAJOR = 10  # tensors by name and strong typing


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network.

    Attributes:
        name: Its name.
        is_input: Whether it is an input.
        dtype: TensorRT's name of its type, such as UINT8.
        dims: Its dimensions; -1 is dynamic.
    """

    name: str
    is_input: bool
    dtype: str
    dims: tuple[int, ...]


def load_module(name: str) -> Any:
    """Import TensorRT or TensorRT-RTX.

    Args:
        name: One of `MODULES`.

    Raises:
        PlanError: It is not installed, or too old.
    """
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        ways = {
            "tensorrt": "NVIDIA's container nvcr.io/nvidia/tensorrt has it: docker compose run"
            " plan, on the machine with the GPU. To check a model without either, use"
            " --module tensorrt_rtx",
            "tensorrt_rtx": "pip install 'detserve[lab]'",
        }
        raise PlanError(f"the module {name} cannot be imported ({error}). {ways[name]}") from error
    if name == "tensorrt" and int(trt.__version__.split(".")[0]) < _OLDEST_MAJOR:
        raise PlanError(
            f"TensorRT {trt.__version__} is too old: it has to be {_OLDEST_MAJOR} or newer"
        )
    return trt


class PlanBuilder:
    """One network, from parsing to its plan."""

    def __init__(self, module: str = "tensorrt") -> None:
        """Start a builder.

        Args:
            module: `tensorrt`, or `tensorrt_rtx`, which needs no GPU and whose plans only it runs.

        Raises:
            PlanError: The module is missing, or finds no GPU and needs one.
        """
        self.trt = load_module(module)
        self.module = module
        self.version: str = self.trt.__version__
        self._log = shared_log(self.trt)
        self._log.take_errors()  # what another object left
        self._log.take_warnings()
        try:
            self._builder = self.trt.Builder(self._log)
        except (RuntimeError, TypeError) as error:  # pybind's, where C++ gives back nothing
            raise explain(
                f"{module} {self.version} cannot start a builder",
                self._log.take_errors() or [str(error)],
            ) from error
        # TensorRT 11 knows no other networks; 10 has to be asked.
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self._network = self._builder.create_network(1 << int(flag))
        self._parser: Any = None

    def parse(self, path: Path) -> tuple[Tensor, ...]:
        """Read an ONNX file; its external data is looked for beside it.

        Returns:
            The network's inputs and outputs.

        Raises:
            PlanError: TensorRT does not take the model; every node that it complains of is named.
        """
        # The parser owns the weights: it has to live as long as the network.
        self._parser = self.trt.OnnxParser(self._network, self._log)
        parsed = self._parser.parse_from_file(str(path))
        errors = [self._parser.get_error(index) for index in range(self._parser.num_errors)]
        if not parsed or errors:
            said = [_describe(error) for error in errors]
            told = "\n".join(said)
            said += [
                line
                for line in self._log.take_errors()
                # The parser logs each error anew, over several lines.
                if "ModelImporter.cpp" not in line and without_noise(line) not in told
            ]
            raise explain(f"{self.module} {self.version} does not take {path}", said)
        if not self._network.num_inputs or not self._network.num_outputs:
            # What TensorRT makes of an empty file, without a complaint.
            raise PlanError(
                f"{path} gives an empty network ({self._network.num_inputs} inputs,"
                f" {self._network.num_outputs} outputs): it is no ONNX model, or an empty one"
            )
        return self._tensors()

    def build(self, options: PlanOptions, *, show_progress: bool = True) -> bytes:
        """Build the plan of the network that was parsed.

        Args:
            options: What to build it with; its profile is over the first dimension of every
                input that is dynamic there.
            show_progress: Whether to show a progress bar on a terminal.

        Raises:
            PlanError: TensorRT cannot build it.
            KeyboardInterrupt: The user stopped the build.
        """
        options.check(self.module)
        config = self._builder.create_builder_config()
        self._add_profile(config, options.batch)
        self._apply(config, options)
        progress = make_progress(self.trt, show=show_progress)
        config.progress_monitor = progress
        self._log.take_errors()  # of the parser's, already told
        try:
            with _interrupt_calls(progress.stop):
                plan = self._builder.build_serialized_network(self._network, config)
        finally:
            progress.close()
        if progress.stopped:
            raise KeyboardInterrupt
        if plan is None:
            raise explain(
                f"{self.module} {self.version} cannot build a plan", self._log.take_errors()
            )
        if options.timing_cache is not None:
            _store_timing_cache(config, options.timing_cache)
        return bytes(plan)

    def take_warnings(self) -> list[str]:
        """What TensorRT has warned of since the last call."""
        warnings: list[str] = self._log.take_warnings()
        return warnings

    def _tensors(self) -> tuple[Tensor, ...]:
        network = self._network
        tensors = [(True, network.get_input(i)) for i in range(network.num_inputs)]
        tensors += [(False, network.get_output(i)) for i in range(network.num_outputs)]
        return tuple(
            Tensor(tensor.name, is_input, tensor.dtype.name, tuple(tensor.shape))
            for is_input, tensor in tensors
        )

    def _add_profile(self, config: Any, batch: tuple[int, int, int]) -> None:
        profile = self._builder.create_optimization_profile()
        for tensor in self._tensors():
            if not tensor.is_input or -1 not in tensor.dims:
                continue
            if -1 in tensor.dims[1:]:
                raise PlanError(
                    f"the input {tensor.name} has the dimensions {list(tensor.dims)}: besides the"
                    " batch all must be fixed, or the profile would not cover them"
                )
            profile.set_shape(tensor.name, *((size, *tensor.dims[1:]) for size in batch))
        if config.add_optimization_profile(profile) < 0:
            raise explain(f"TensorRT refuses the profile {batch}", self._log.take_errors())

    def _apply(self, config: Any, options: PlanOptions) -> None:
        trt = self.trt
        if options.workspace_mib is not None:
            size = options.workspace_mib << 20
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.sparsity:
            config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatibility != "none":
            name = options.hardware_compatibility.upper().replace("-", "_")
            level = getattr(trt.HardwareCompatibilityLevel, name, None)
            if level is None:
                raise PlanError(
                    f"TensorRT {self.version} has no hardware compatibility"
                    f" {options.hardware_compatibility!r}"
                )
            config.hardware_compatibility_level = level
        if options.timing_cache is not None:
            self._load_timing_cache(config, options.timing_cache)

    def _load_timing_cache(self, config: Any, path: Path) -> None:
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise PlanError(f"cannot read the timing cache {path}: {error.strerror}") from error
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            raise explain(
                f"the timing cache {path} is none of this TensorRT and GPU: remove it or name"
                " another file",
                self._log.take_errors(),
            )


@contextlib.contextmanager
def _interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C call a function: an exception must not pass through TensorRT's C++."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _store_timing_cache(config: Any, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        temporary.replace(path)
    except OSError as error:
        raise PlanError(f"cannot write the timing cache {path}: {error.strerror}") from error


def _describe(error: Any) -> str:
    """A parser's error with the node that it is about."""
    where = ""
    if error.node() >= 0:
        where = f"node {error.node()}, {error.node_operator()} {error.node_name()!r}: "
    return f"{where}{without_noise(error.desc())} ({error.code().name})"
