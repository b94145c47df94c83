"""The TensorRT engine on a GPU, where there is one; elsewhere its calls against the real API.

On a machine with an NVIDIA GPU and TensorRT this builds plans of the default detector and compares
the engine with ONNX Runtime. Without one only names and argument lists can be compared, with those
of TensorRT-RTX, whose Python API is TensorRT's, and of cuda-bindings.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import build_plan
from detserve.engines import EngineError, OnnxRuntimeEngine, TensorRTEngine, find_gpu
from detserve.engines._cuda import Buffers, Cuda
from plan import PlanRecord
from tests import tensorrt_fake
from tests.lab.plan_models import to_fp16, write_small_detector

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = ROOT / "model_repository/detector/1/model.onnx"


def why_no_gpu() -> str:
    """Why nothing can run here; empty where it can."""
    try:
        importlib.import_module("tensorrt")
        find_gpu()
    except (ImportError, EngineError) as error:
        return str(error)
    return ""


needs_gpu = pytest.mark.skipif(bool(why_no_gpu()), reason=why_no_gpu())


def takes(method: Any, names: list[str]) -> bool:
    """Whether a method of TensorRT's has an overload that can be called with these arguments."""
    # pybind11 documents each: name(self: Engine, index: int, options: Options = None) -> str
    for signature in re.findall(rf"\b{method.__name__}\((self: .*)\) -> ", method.__doc__):
        parameters = re.findall(r"(?:^|, )(\w+): ([^=,]*)(=)?", signature)
        needed = [name for name, _, default in parameters if not default]
        if needed == names:
            return True
    return False


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (tensorrt_fake.Runtime, "Runtime"),
        (tensorrt_fake.Engine, "ICudaEngine"),
        (tensorrt_fake.ExecutionContext, "IExecutionContext"),
        (tensorrt_fake.FakeTensorRT.ILogger, "ILogger"),
        (tensorrt_fake.FakeTensorRT.TensorIOMode, "TensorIOMode"),
        (tensorrt_fake.FakeTensorRT.DataType, "DataType"),
    ],
)
def test_the_stand_in_for_tensorrt_has_nothing_that_the_real_one_lacks(
    fake: type, real: str
) -> None:
    real_type = getattr(pytest.importorskip("tensorrt_rtx"), real)
    # TensorRT's enumerations keep their members apart; they are attributes all the same.
    names = [name for name in vars(fake) if not name.startswith("_") and name != "trt"]
    assert names
    for name in names:
        assert hasattr(real_type, name), f"{real} has no {name}"
        ours = inspect.getattr_static(fake, name)
        if inspect.isfunction(ours):
            assert takes(getattr(real_type, name), list(inspect.signature(ours).parameters)), name


def test_the_stand_in_for_cuda_has_nothing_that_the_real_one_lacks() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    fake = tensorrt_fake.FakeCuda
    for name in (name for name in vars(fake) if name.startswith("cuda")):
        assert hasattr(runtime, name), f"cuda.bindings.runtime has no {name}"
        ours = vars(fake)[name]
        if inspect.isfunction(ours):
            # Cython puts the signature into the first line of the documentation.
            signature = re.match(rf"{name}\((.*)\)", getattr(runtime, name).__doc__)
            assert signature is not None
            theirs = [part for part in signature[1].split(",") if part]
            assert len(inspect.signature(ours).parameters) - 1 == len(theirs), name
    for name in vars(fake.cudaMemcpyKind):
        assert int(getattr(runtime.cudaMemcpyKind, name)) == vars(fake.cudaMemcpyKind)[name]
    for error in tensorrt_fake.CudaError:
        assert int(getattr(runtime.cudaError_t, error.name)) == error


def test_without_a_gpu_cudas_own_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stand-in: the real bindings, on a machine without a driver."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if not why_no_gpu() or Path("/proc/driver/nvidia").exists():
        pytest.skip("there is a driver")
    with pytest.raises(EngineError, match="there is no NVIDIA GPU that CUDA can use"):
        find_gpu()
    # Past that check every call still takes its arguments, and fails as CUDA does.
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (runtime.cudaError_t(0), 1))
    cuda = Cuda()
    memory: Any = SimpleNamespace(host=4096, device=8192)
    for call in (
        cuda.use,
        cuda.gpu,
        cuda.new_stream,
        lambda: Buffers(cuda, 64),
        lambda: cuda.upload(memory, 64, 16),
        lambda: cuda.download(memory, 64, 16),
        lambda: cuda.call("cudaStreamSynchronize", 16),
        lambda: cuda.call("cudaStreamDestroy", 16),
        lambda: cuda.call("cudaMalloc", 64),
        lambda: cuda.call("cudaFree", 8192),
        lambda: cuda.call("cudaFreeHost", 4096),
    ):
        with pytest.raises(EngineError, match=r"CUDA failed in cuda\w+: CUDA driver version"):
            call()


def test_a_plan_of_rtx_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = write_small_detector(tmp_path / "model.onnx")
    assert build_plan.main([str(model), "--module", "tensorrt_rtx"]) == 0
    with pytest.raises(EngineError, match=r"was built by TensorRT-RTX 1\.\S+, whose plans Tens"):
        TensorRTEngine(model.with_suffix(".rtx"))


def photos(engine: OnnxRuntimeEngine, count: int) -> npt.NDArray[np.uint8]:
    """Smooth pictures: on noise every score is alike, and their order chance."""
    width, height = engine.input_size_wh
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 6, 6, 3), np.uint8)
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 6 // width
    return coarse[:, rows][:, :, columns]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    makers: dict[str, Callable[[Path, Path], Any]] = {
        "fp32": lambda model, output: output.write_bytes(model.read_bytes()),
        "fp16": to_fp16,
    }
    makers[request.param](DEFAULT_MODEL, folder / "model.onnx")
    assert build_plan.main([str(folder / "model.onnx"), "--batch", "1", "4", "8"]) == 0
    return folder / "model.plan"


@needs_gpu
def test_candidates_equal_those_of_onnxruntime(plan: Path) -> None:
    reference = OnnxRuntimeEngine(DEFAULT_MODEL)
    images = photos(reference, 11)  # more than the profile's greatest batch
    wanted, found = reference.infer(images), TensorRTEngine(plan).infer(images)
    half = PlanRecord.read(plan).precision == "fp16"
    assert found.shape == wanted.shape
    assert (np.diff(found[..., 4], axis=1) <= 1e-6).all()
    # Neighbours of almost equal scores may change places: each of the best is looked up.
    for image_wanted, image_found in zip(wanted, found, strict=True):
        best = image_wanted[:20]
        distances = np.abs(best[:, None] - image_found[None])
        pixels, scores = distances[..., :4].max(axis=2), distances[..., 4:].max(axis=2)
        near = (pixels <= (4.0 if half else 0.2)) & (scores <= (2e-2 if half else 1e-3))
        assert near.any(axis=1).mean() >= (0.9 if half else 1.0)


@needs_gpu
def test_threads_share_the_contexts(plan: Path) -> None:
    engine = TensorRTEngine(plan, contexts=3)
    images = photos(OnnxRuntimeEngine(DEFAULT_MODEL), 9)
    alone = engine.infer(images)
    with ThreadPoolExecutor(8) as pool:
        for together in pool.map(lambda _: engine.infer(images), range(40)):
            np.testing.assert_allclose(together[..., 4], alone[..., 4], atol=1e-3)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer(images)


@needs_gpu
def test_the_record_names_the_gpu_and_a_timing_cache_is_kept(tmp_path: Path) -> None:
    model = write_small_detector(tmp_path / "model.onnx")
    cache = tmp_path / "timings"
    for _ in range(2):
        assert build_plan.main([str(model), "--timing-cache", str(cache)]) == 0
        assert cache.stat().st_size > 0
    record = PlanRecord.read(tmp_path / "model.plan")
    assert record.gpu is not None
    assert record.gpu["name"] == find_gpu().name


@needs_gpu
@pytest.mark.parametrize(
    "options", [["--version-compatible"], ["--hardware-compatible", "ampere-plus"]]
)
def test_compatible_plans_build_and_run(tmp_path: Path, options: list[str]) -> None:
    model = write_small_detector(tmp_path / "model.onnx")
    assert build_plan.main([str(model), *options]) == 0
    engine = TensorRTEngine(
        tmp_path / "model.plan", version_compatible="--version-compatible" in options
    )
    images = photos(OnnxRuntimeEngine(model), 2)
    np.testing.assert_allclose(
        engine.infer(images), OnnxRuntimeEngine(model).infer(images), atol=1e-2
    )
