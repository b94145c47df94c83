"""Find a Triton, and set up its environment and its backends.

In NVIDIA's container `tritonserver` is on PATH and complete. The `nvidia-pytriton` wheel carries
the same program, but not set up: its libraries and those of the interpreter are not on the
library path, the Python backend lacks the stub of the running Python, and there is no backend for
ONNX models: ours stand in.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from local_server._errors import ServerError

_HERE = Path(__file__).resolve().parent
# Those named after Triton's own stand in for them where it has none.
_OURS = {
    "preprocess_backend": _HERE.parent / "preprocess_backend",
    "onnxruntime": _HERE / "onnxruntime_backend",
    "openvino": _HERE / "openvino_backend",
}
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Triton:
    """An installed Triton and what it needs to run.

    Attributes:
        executable: The `tritonserver` program.
        backends: The backends it came with, a folder each.
        caches: The response caches it came with, a folder each.
        stub: The Python backend's stub for the running Python, where it is not beside the
            backend's library already.
        environment: Variables to set or replace.
    """

    executable: Path
    backends: Path
    caches: Path
    stub: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)


def find_triton() -> Triton:
    """Find the container's Triton on PATH, else the one of `nvidia-pytriton`.

    Raises:
        ServerError: If there is none, or none that works with the running Python.
    """
    on_path = shutil.which("tritonserver")
    if on_path is not None:
        executable = Path(on_path).resolve()
        root = executable.parent.parent
        return Triton(executable, root / "backends", root / "caches", environment={"PATH": _path()})
    spec = importlib.util.find_spec("pytriton")  # not imported: that takes a second
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            "no Triton found: there is no tritonserver on PATH (as in NVIDIA's container), and "
            "the package nvidia-pytriton is not installed (Linux on x86-64: "
            "pip install nvidia-pytriton)"
        )
    package = Path(spec.submodule_search_locations[0])
    return _wheel_triton(package)


def _wheel_triton(package: Path) -> Triton:
    root = package / "tritonserver"
    executable = root / "bin" / "tritonserver"
    if not executable.is_file():
        raise ServerError(f"the package nvidia-pytriton in {package.parent} has no tritonserver")
    libraries = [package.parent / "nvidia_pytriton.libs"]
    shared_python = _shared_python()
    if shared_python is not None:
        libraries.append(shared_python)
    before = [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]
    return Triton(
        executable,
        root / "backends",
        root / "caches",
        stub=_stub(root / "python_backend_stubs"),
        environment={
            "PATH": _path(),
            "LD_LIBRARY_PATH": os.pathsep.join([*map(str, libraries), *before]),
        },
    )


def _path() -> str:
    """PATH with this interpreter first: the stub takes the first `python3` there for its own.

    It ignores PYTHONHOME and PYTHONPATH, so this is how it gets our virtual environment.
    """
    # Not resolved: the link in the environment's bin is what makes it an environment.
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _stub(stubs: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = stubs / version / _STUB
    if not stub.is_file():
        known = sorted(
            (folder.name for folder in stubs.glob("*.*") if (folder / _STUB).is_file()),
            key=lambda name: [int(part) for part in name.split(".")],
        )
        raise ServerError(
            f"nvidia-pytriton has no Python backend for Python {version}: "
            f"use one of {', '.join(known)}"
        )
    return stub


def _shared_python() -> Path | None:
    """The folder of the shared libpython, or None where the system finds it by itself."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    library = f"libpython{version}.so.1.0"
    base = Path(sys.base_prefix)
    for folder in (Path(sysconfig.get_config_var("LIBDIR") or base), base / "lib", base / "lib64"):
        if (folder / library).is_file():
            return folder
    if ctypes.util.find_library(f"python{version}") is not None:
        return None
    raise ServerError(
        f"Triton's Python backend needs {library}, and the Python in {base} has none: install it "
        f"(Debian and Ubuntu: apt-get install libpython{version}), or use a Python built with "
        f"--enable-shared (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {version})"
    )


def backend_names(triton: Triton) -> set[str]:
    """The backends that a Triton has here: its own and ours."""
    own = {path.name for path in triton.backends.iterdir() if path.is_dir()}
    return {*own, *_OURS}


def link_backends(triton: Triton, folder: Path) -> None:
    """Fill a folder with links to every backend: those of Triton, and ours beside them.

    Args:
        triton: The Triton that will use the folder.
        folder: An empty folder.
    """
    for backend in sorted(triton.backends.iterdir()):
        if not backend.is_dir():
            continue
        if backend.name == "python" and triton.stub is not None:
            # Copies: Triton refuses a library that is a link out of its folder.
            shutil.copytree(
                backend, folder / "python", ignore=shutil.ignore_patterns("__pycache__")
            )
            shutil.copy2(triton.stub, folder / "python" / _STUB)
        else:
            (folder / backend.name).symlink_to(backend)
    for name, backend in _OURS.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(backend)
