"""The TensorRT engine against stand-ins for TensorRT and CUDA, and without either.

A GPU cannot be had here, so this shows how the engine uses the two: splitting, pool, memory,
threads and errors. What the real ones compute, tests/lab/test_tensorrt_engine.py asks on a GPU.
"""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from detserve.engines import EngineError, TensorRTEngine, find_gpu, load_engine
from tests.tensorrt_fake import HEIGHT, ROWS, WIDTH, FakeCuda, FakeTensorRT


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "model.plan")


def write_plan(
    path: Path, tag: bytes = b"ftrt", version: tuple[int, ...] = (11, 1, 0, 106)
) -> Path:
    path.write_bytes(tag + bytes(20) + bytes(version) + bytes(100))
    return path


def some_images(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


def check(engine: TensorRTEngine, images: npt.NDArray[np.uint8]) -> None:
    """The stand-in gives an image's mean as its first candidate's first number."""
    candidates = engine.infer(images)
    assert candidates.shape == (len(images), ROWS, 6)
    assert candidates.dtype == np.float32
    np.testing.assert_allclose(candidates[:, 0, 0], images.mean(axis=(1, 2, 3)), rtol=1e-6)
    assert not candidates[:, 1:].any()


@pytest.mark.parametrize(
    ("count", "batches"), [(0, []), (1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (11, [4, 4, 3])]
)
def test_batches_beyond_the_profile_run_in_parts(
    plan: Path, trt: FakeTensorRT, count: int, batches: list[int]
) -> None:
    engine = load_engine(plan, "tensorrt")
    assert isinstance(engine, TensorRTEngine)
    assert engine.input_size_wh == (WIDTH, HEIGHT)
    assert engine.max_batch_size == 4
    check(engine, some_images(count))
    assert trt.batches == batches


def test_batches_below_the_profile_are_padded(plan: Path, trt: FakeTensorRT) -> None:
    trt.batch = (3, 3, 4)
    engine = TensorRTEngine(plan)
    check(engine, some_images(1))
    check(engine, some_images(5, seed=1))
    assert trt.batches == [3, 4, 3]


def test_images_need_not_lie_together(plan: Path, trt: FakeTensorRT) -> None:
    check(TensorRTEngine(plan), some_images(6)[::2, ::-1])
    assert trt.batches == [3]


def test_as_many_batches_run_at_once_as_there_are_contexts(plan: Path, trt: FakeTensorRT) -> None:
    trt.seconds = 0.02
    engine = TensorRTEngine(plan, contexts=3)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: check(engine, some_images(1 + seed % 6, seed)), range(40)))
    assert trt.contexts == 3
    assert trt.most_running == 3


def test_memory_is_given_back(plan: Path, trt: FakeTensorRT, cuda: FakeCuda) -> None:
    engine = TensorRTEngine(plan, contexts=2)
    check(engine, some_images(2))
    assert len(cuda.allocated) == 8  # two contexts, two tensors, either side
    engine.close()
    engine.close()
    assert not cuda.allocated
    assert not cuda.streams
    with pytest.raises(EngineError, match="closed"):
        engine.infer(some_images(1))

    forgotten = TensorRTEngine(plan)
    assert cuda.allocated
    del forgotten
    gc.collect()
    assert not cuda.allocated
    assert trt.contexts == 4


def test_a_context_is_given_back_after_an_error(
    plan: Path, trt: FakeTensorRT, cuda: FakeCuda
) -> None:
    engine = TensorRTEngine(plan, contexts=1)
    trt.executes = False
    with pytest.raises(EngineError, match=r"TensorRT cannot run .*model\.plan"):
        engine.infer(some_images(1))
    trt.executes = True
    cuda.failing = "cudaStreamSynchronize"
    with pytest.raises(EngineError, match="CUDA failed in cudaStreamSynchronize: words for cuda"):
        engine.infer(some_images(1))
    cuda.failing = ""
    checked = threading.Thread(target=check, args=(engine, some_images(2)))
    checked.start()
    checked.join(10)
    assert not checked.is_alive()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, HEIGHT, WIDTH, 3), np.float32),
        np.zeros((1, WIDTH, HEIGHT, 3), np.uint8),
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
    ],
)
@pytest.mark.usefixtures("trt")
def test_other_images_are_refused(plan: Path, images: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(EngineError, match=r"takes uint8 \[N, 4, 5, 3\], got "):
        TensorRTEngine(plan).infer(images)


@pytest.mark.usefixtures("trt")
def test_a_plan_of_another_library_or_version_is_refused(plan: Path) -> None:
    write_plan(plan, b"vtrt", (1, 7, 1, 116))
    with pytest.raises(EngineError, match=r"built by TensorRT-RTX 1\.7\.1\.116, whose plans"):
        TensorRTEngine(plan)
    write_plan(plan, version=(10, 5, 0, 18))
    with pytest.raises(EngineError, match=r"TensorRT 10\.5\.0\.18, but this is TensorRT 11\.1\.0"):
        TensorRTEngine(plan)
    plan.write_bytes(b"onnx")
    with pytest.raises(EngineError, match="is no TensorRT plan"):
        TensorRTEngine(plan)


def test_a_compatible_plan_may_run_its_host_code_only_when_told(
    plan: Path, trt: FakeTensorRT
) -> None:
    TensorRTEngine(plan)
    assert not trt.host_code_allowed
    check(
        TensorRTEngine(write_plan(plan, version=(11, 0, 0, 1)), version_compatible=True),
        some_images(1),
    )
    assert trt.host_code_allowed


def test_what_tensorrt_says_is_part_of_the_error(plan: Path, trt: FakeTensorRT) -> None:
    trt.deserializes = False
    with pytest.raises(EngineError, match=r"the plan is of another GPU.*here GPU 0") as caught:
        TensorRTEngine(plan)
    assert "a warning" not in str(caught.value)


def test_other_tensors_are_refused(plan: Path, trt: FakeTensorRT) -> None:
    trt.input_dtype = trt.DataType.HALF
    with pytest.raises(EngineError, match=r"images DataType\.HALF .*a detector has images UINT8"):
        TensorRTEngine(plan)
    trt.input_dtype = trt.DataType.UINT8
    trt.output_name = "boxes"
    with pytest.raises(EngineError, match="boxes"):
        TensorRTEngine(plan)


@pytest.mark.parametrize("memory", [0, 300, 600, 1000])
def test_too_little_memory_leaves_none_taken(
    plan: Path, trt: FakeTensorRT, cuda: FakeCuda, memory: int
) -> None:
    cuda.free_memory = memory  # for two contexts 2 * (2 * 240 + 2 * 288) bytes are needed
    with pytest.raises(EngineError, match=r"CUDA failed in cuda\w+: words for cudaErrorMemory"):
        TensorRTEngine(plan)
    gc.collect()
    assert cuda.free_memory == memory
    assert not cuda.streams
    assert not trt.batches


def test_without_gpu_driver_or_package_the_error_says_so(
    plan: Path, trt: FakeTensorRT, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match="there is no GPU 3: CUDA sees 1"):
        TensorRTEngine(plan, device=3)
    with pytest.raises(EngineError, match="contexts must be at least 1"):
        TensorRTEngine(plan, contexts=0)
    assert find_gpu().compute_capability == "9.0"
    cuda.gpus = 0
    with pytest.raises(EngineError, match=r"no NVIDIA GPU that CUDA can use .*error 35"):
        TensorRTEngine(plan)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match="pip install cuda-bindings"):
        find_gpu()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"container nvcr\.io/nvidia/tensorrt has it"):
        TensorRTEngine(plan)
    assert not trt.batches
