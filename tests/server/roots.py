"""Runs an image's commands without an engine: a root folder of its own, as a container has it.

A root is made from this machine's system folders and from what the Dockerfile copies. Commands run
in it as its user, read-only but for what compose makes writable, without capabilities, with /tmp
and /dev/shm of the sizes that compose gives. What differs from a container: the base image is this
machine's (its Python and packages, a Triton out of nvidia-pytriton where NVIDIA's image has its
own), and network and processes are shared with it. It takes root and `unshare`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from tests.container_files import ROOT, Image

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64")
# Of /etc, copied: who is who, and where libraries and programs are.
_ETC = ("passwd", "group", "nsswitch.conf", "hosts", "ld.so.cache", "alternatives")
_DEVICES = ("null", "zero", "random", "urandom")
_VENV = Path(sys.prefix)


def why_not() -> str | None:
    """Why no root can be made here; None if one can."""
    if os.geteuid() != 0:
        return "only root can make a root folder"
    if not all(map(shutil.which, ("unshare", "setpriv", "chroot"))):
        return "no unshare, setpriv or chroot on PATH"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        return "no mounts of its own are allowed here"
    return None


@dataclass
class Root:
    """The root folder of an image.

    Attributes:
        folder: Where it is on this machine.
        image: The image.
        base_environment: The variables that the base image would have.
        mounts: Folders of this machine in it: source, target, whether it can be written to.
        tmpfs: File systems in memory: target, options.
        shm_size: The size of /dev/shm.
    """

    folder: Path
    image: Image
    base_environment: dict[str, str]
    mounts: list[tuple[Path, str, bool]] = field(default_factory=list)
    tmpfs: list[tuple[str, str]] = field(default_factory=list)
    shm_size: str = "64m"

    def command(
        self,
        arguments: Iterable[str],
        variables: Mapping[str, str],
        *,
        user: str | None = None,
        first: bool = False,
    ) -> list[str]:
        """The command line that runs a command in it.

        Args:
            arguments: The command.
            variables: Those of the compose file, and such.
            first: Whether it is the first of processes of its own; `unshare` is its parent then.
            user: Another user than the image's, as uid:gid; "0:0" with a root that can be written.
        """
        number, _, group = (user or self.image.user).partition(":")
        environment = self.base_environment | {
            name: _expand(value, self.base_environment)
            for name, value in self.image.environment.items()
        }
        environment |= variables
        inside = ["env", "-i", "-C", self.image.workdir]
        inside += [f"{name}={value}" for name, value in environment.items()]
        privileges = [f"--reuid={number}", f"--regid={group}", "--clear-groups"]
        privileges += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        run = ["chroot", str(self.folder), "setpriv", *privileges, *inside, *arguments]
        proc = "mount -t proc proc" if first else "mount --rbind /proc"
        script = [*self._mounting(proc, writable=user == "0:0"), f"exec {shlex.join(run)}"]
        unshare = ["unshare", "--mount", "--propagation=private"]
        if first:
            unshare += ["--pid", "--fork", "--kill-child"]
        return [*unshare, "sh", "-ec", "\n".join(script)]

    def build(self) -> None:
        """Run the image's RUN instructions, but for those that install packages or add users."""
        for line in self.image.runs:
            if not any(
                word in line for word in ("pip install", "pip uninstall", "useradd", "venv")
            ):
                words = json.loads(line) if line.startswith("[") else ["/bin/sh", "-c", line]
                subprocess.run(self.command(words, {}, user="0:0"), check=True, timeout=120)

    def _mounting(self, proc: str, *, writable: bool) -> list[str]:
        root = shlex.quote(str(self.folder))
        lines = [f"mount --bind {root} {root}"]
        # First: this environment itself may be in a folder of /tmp. But for those in what is bound.
        outer: list[str] = []
        inner: list[str] = []
        for target, options in self.tmpfs:
            within = any(target.startswith(f"{place}/") for _, place, _ in self.mounts)
            mount = f"mount -t tmpfs -o {options} tmpfs {root}{target}"
            (inner if within else outer).append(f"mkdir -p {root}{target}\n{mount}")
        lines += outer
        lines.append(f"mount -t tmpfs -o mode=1777,size={self.shm_size} tmpfs {root}/dev/shm")
        bound = [(Path("/") / name, f"/{name}", False) for name in _SYSTEM]
        bound += [(Path(sys.base_prefix), sys.base_prefix, False), (_VENV, str(_VENV), False)]
        bound += [(Path("/dev") / name, f"/dev/{name}", True) for name in _DEVICES]
        for source, target, can_write in [*bound, *self.mounts]:
            if not source.exists() or source.is_symlink():
                continue  # /lib is a link into /usr on most: made as one
            place = f"{root}{shlex.quote(target)}"
            is_folder = source.is_dir()
            lines.append(f"mkdir -p {place if is_folder else place.rpartition('/')[0]}")
            if not is_folder:
                lines.append(f"touch {place}")
            lines.append(f"mount --bind {shlex.quote(str(source))} {place}")
            if not can_write:
                lines.append(f"mount -o remount,bind,ro {place}")
        lines += inner
        lines.append(f"{proc} {root}/proc")
        if not writable:
            lines.append(f"mount -o remount,bind,ro {root}")
        return lines


def make_root(folder: Path, image: Image) -> Root:
    """Make the root folder of an image: what is copied, and the packages of this environment.

    Args:
        folder: An empty folder.
        image: The image.
    """
    folder.chmod(0o755)
    for name in _SYSTEM:
        if (Path("/") / name).is_symlink():
            (folder / name).symlink_to((Path("/") / name).readlink())
    for name in ("tmp", "proc", "dev/shm", "run", "etc"):
        (folder / name).mkdir(parents=True)
    (folder / "dev/stdout").symlink_to("/proc/self/fd/1")
    for name in _ETC:
        if (Path("/etc") / name).exists():
            _copy(Path("/etc") / name, folder / "etc" / name)
    for source, target in image.copies:
        place = folder / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        _copy(ROOT / source, place)
    # The packages of this environment without the project itself, which is installed in it.
    venv = folder / "opt/venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = venv / sysconfig.get_path("purelib", vars={"base": ""}).lstrip("/")
    (packages / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return Root(folder, image, {"PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin"})


def add_triton(root: Root) -> None:
    """Put a Triton where NVIDIA's image has it, and an entry point that only runs the command."""
    spec = find_spec("pytriton")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    triton = root.folder / "opt/tritonserver"
    shutil.copytree(package / "tritonserver", triton, ignore=shutil.ignore_patterns("__pycache__"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy2(stub, triton / "backends/python")
    shutil.rmtree(triton / "python_backend_stubs")
    entry = root.folder / "opt/nvidia/nvidia_entrypoint.sh"
    entry.parent.mkdir(parents=True)
    entry.write_text('#!/bin/sh\nexec "$@"\n')
    entry.chmod(0o755)
    libraries = [package.parent / "nvidia_pytriton.libs", Path(sys.base_prefix) / "lib"]
    root.base_environment["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
    root.base_environment["PATH"] = f"/opt/tritonserver/bin:{root.base_environment['PATH']}"


def _expand(value: str, environment: Mapping[str, str]) -> str:
    return value.replace("$PATH", environment["PATH"])


def _copy(source: Path, place: Path) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "model.onnx", "model.plan")
        shutil.copytree(source, place, ignore=ignored, dirs_exist_ok=True, symlinks=True)
    else:
        shutil.copy2(source, place)
