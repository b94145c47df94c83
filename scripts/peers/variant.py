"""The other ensembles: the detector's own file in another backend, and its INT8 variant.

The variant is made once and kept in the build folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from assembly import install
from detserve.repository import DetectorRepository
from peers.errors import ComparisonError
from photos import PHOTOS, jpeg
from reporting.variants import make_variant

__all__ = ["Variant", "int8_variant", "with_engine", "with_variant"]

_ENGINE = "onnxruntime"
_MODEL, _NOTES = "model.onnx", "notes.json"


@dataclass(frozen=True)
class Variant:
    """A detector's variant.

    Attributes:
        model: Its file.
        notes: How it was made, and what it costs in accuracy.
    """

    model: Path
    notes: tuple[str, ...]


def int8_variant(model: Path, calibration: Path | None, cache: Path) -> Variant:
    """Quantise a detector as `scripts/report.py` does, unless that was done before.

    Args:
        model: A float32 detector of the contract.
        calibration: Folder of images to calibrate with; None for the demo's four photos.
        cache: Folder that keeps what was made, under a name made of the model and the images.

    Raises:
        ComparisonError: The detector cannot be quantised, or there are no images.
        ContractError, EvaluationError, OSError: As the steps raise them.
    """
    if calibration is None:
        images = {f"{name}.jpg": jpeg(name) for name in PHOTOS}
    else:
        files = sorted(path for path in calibration.iterdir() if path.is_file())
        images = {path.name: path.read_bytes() for path in files}
    if not images:
        raise ComparisonError(f"there are no images to calibrate with in {calibration}")
    digest = hashlib.sha256(model.read_bytes())
    for name, image in images.items():
        digest.update(name.encode() + hashlib.sha256(image).digest())
    kept = cache / f"int8-{digest.hexdigest()[:16]}"
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as folder:
            _make(model, images, Path(folder)).rename(kept)
    notes = json.loads((kept / _NOTES).read_text(encoding="utf-8"))
    return Variant(kept / _MODEL, tuple(notes))


def _make(model: Path, images: dict[str, bytes], folder: Path) -> Path:
    calibration = folder / "images"
    calibration.mkdir()
    for name, image in images.items():
        (calibration / name).write_bytes(image)
    # Without labels it is held to its agreement with the float32 detector.
    made = make_variant("int8", model, _ENGINE, calibration, None, 0.0, folder)
    if made.path is None:
        raise ComparisonError(f"the INT8 variant {'; '.join(made.notes)}")
    result = folder / "made"
    result.mkdir()
    made.path.rename(result / _MODEL)
    (result / _NOTES).write_text(json.dumps(made.notes, indent=1) + "\n", encoding="utf-8")
    return result


def with_variant(repository: Path, variant: Variant, copy: Path) -> None:
    """Copy an ensemble, with a variant as the version that it serves: all else stays the same.

    Args:
        repository: The model repository.
        variant: What to serve.
        copy: Folder for the copy, which is made.

    Raises:
        RepositoryError: The variant does not fit the ensemble.
        OSError: Something cannot be copied.
    """
    _copy(repository, copy)
    install(variant.model, copy)


def with_engine(repository: Path, engine: str, copy: Path) -> None:
    """Copy an ensemble, with the same file of the detector served by another backend.

    Args:
        repository: The model repository.
        engine: Key of `assembly.ENGINES`.
        copy: Folder for the copy, which is made.

    Raises:
        RepositoryError: The file is not for that engine.
        OSError: Something cannot be copied.
    """
    _copy(repository, copy)
    install(DetectorRepository(repository).model_file(), copy, engine=engine, replace_configs=True)


def _copy(repository: Path, copy: Path) -> None:
    for config in DetectorRepository(repository).configs:
        shutil.copytree(repository / config.name, copy / config.name)
