"""The Dockerfiles: what can be read of them without an engine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.container_files import DOCKERFILES, ROOT, image

LOCK = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.M))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_are_clean(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(hadolint), "--failure-threshold", "style", str(dockerfile)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_every_base_image_is_pinned() -> None:
    for dockerfile in DOCKERFILES:
        text = dockerfile.read_text()
        defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.M))
        stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.M))
        for base in re.findall(r"^FROM (\S+)", text, re.M):
            if base not in stages:
                tag = defaults[re.fullmatch(r"[\w./-]+:\$\{(\w+)\}", base)[1]]  # type: ignore[index]
                assert re.match(r"\d+\.\d+", tag)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_not_ignored(dockerfile: Path) -> None:
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    sources = [source for source, _ in image(dockerfile).copies]
    sources += re.findall(r"type=bind,source=([^,]+),", dockerfile.read_text())
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in kept), source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_without_root_in_exec_form(dockerfile: Path) -> None:
    made = image(dockerfile)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", made.user)  # by number, so that Kubernetes can tell
    assert made.entrypoint
    assert made.labels["org.opencontainers.image.title"] == f"detserve-{dockerfile.stem}"
    assert made.labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_code_is_copied_after_the_packages() -> None:
    for dockerfile in DOCKERFILES:
        text = dockerfile.read_text()
        assert text.rindex("pip install" if "plan" in dockerfile.name else "--requirement") < (
            text.index("COPY detserve ")
        )


@pytest.mark.parametrize("name", ["triton", "gateway", "tools"])
def test_packages_are_of_the_project_and_locked(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    known = [*project["dependencies"], *(text for extra in extras for text in extra)]
    names = {re.match(r"[\w-]+", text)[0] for text in known}  # type: ignore[index]
    wanted = [
        line
        for line in (ROOT / f"deploy/docker/{name}.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert wanted == sorted(wanted)
    for line in wanted:
        package = line.partition("[")[0]
        assert package in names
        assert package in LOCK
    assert "nvidia-pytriton" not in wanted


def imports(folder: Path) -> set[str]:
    """The modules that a folder's files import at their top, in any case."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").partition(".")[0])
    return found


def test_the_triton_image_has_what_its_code_imports() -> None:
    packages = {"numpy": "numpy", "cv2": "opencv-python-headless", "PIL": "pillow"}
    packages["simplejpeg"] = "simplejpeg"
    folders = [ROOT / "preprocess_backend", ROOT / "model_repository/postprocess"]
    found = set().union(*map(imports, folders)) | imports_of("detserve/imaging.py")
    found |= imports_of("detserve/decoding.py") | imports_of("detserve/nms.py")
    found -= sys.stdlib_module_names | {"detserve", "triton_python_backend_utils"}
    wanted = (ROOT / "deploy/docker/triton.txt").read_text().splitlines()
    assert {packages[name] for name in found} == {w for w in wanted if not w.startswith("#")}


def imports_of(path: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found
