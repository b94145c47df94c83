"""How the service is run for a case, and what that takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from robustness.cases.clock import clock_environment, find_library, remove_segments
from robustness.cases.storage import LOG_MOUNT
from robustness.service import Kept, Service, free_ports

__all__ = ["SETTINGS", "Setting"]

LOG_DISK_BYTES = 16 * 2**20
SHM_BYTES = 64 * 2**20
# At half of the capacity nothing is to be refused in a burst, so that refusals tell of faults.
GATEWAY_OPTIONS = ("--max-wait", "5")


@dataclass(frozen=True, slots=True)
class Setting:
    """A way of running the service.

    Attributes:
        make: Makes the service from a repository and a temporary folder.
        lacks: Says what this machine lacks for it; "" if nothing.
        tidy: Removes what the service leaves outside its folder when it has ended.
    """

    make: Callable[[Path, Path], Service]
    lacks: Callable[[], str]
    tidy: Callable[[], None] = lambda: None


def _plain(repository: Path, folder: Path) -> Service:
    return Service(repository, folder, gateway_options=GATEWAY_OPTIONS)


def _redis(repository: Path, folder: Path) -> Service:
    (port,) = free_ports(1)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1"]
    options = ["--save", "", "--dir", str(folder)]
    url = ("--redis-url", f"redis://127.0.0.1:{port}/0")
    return Service(
        repository,
        folder,
        gateway_options=(*GATEWAY_OPTIONS, *url),
        helpers={"redis": Kept([*command, *options], folder / "redis.log")},
    )


def _clock(repository: Path, folder: Path) -> Service:
    environment = clock_environment(folder)
    return Service(repository, folder, gateway_options=GATEWAY_OPTIONS, environment=environment)


def _mounted(mount_point: Path, size: int) -> list[str]:
    """A command that runs another one with a small file system that only that one sees."""
    script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
    return [*_unshare(), "sh", "-c", script, "sh", str(size), str(mount_point)]


def _unshare() -> list[str]:
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    return ["unshare", *user, "--mount", "--propagation", "private"]


def _small_log_disk(repository: Path, folder: Path) -> Service:
    (mount_point := folder / LOG_MOUNT).mkdir()
    return Service(
        repository,
        folder,
        gateway_options=GATEWAY_OPTIONS,
        launcher_options=(
            *("--log-file", str(mount_point / "triton.log")),
            *("--", "--log-verbose=1"),  # lines for every request
        ),
        wrapper=_mounted(mount_point, LOG_DISK_BYTES),
    )


def _small_shm(repository: Path, folder: Path) -> Service:
    return Service(
        repository,
        folder,
        gateway_options=GATEWAY_OPTIONS,
        wrapper=_mounted(Path("/dev/shm"), SHM_BYTES),
    )


def _nothing() -> str:
    return ""


def _no_redis() -> str:
    return "" if shutil.which("redis-server") else "redis-server is not installed"


def _no_faketime() -> str:
    if not find_library():
        return "libfaketime is not installed (Debian: faketime)"
    return "" if shutil.which("cc") else "there is no C compiler (Debian: gcc)"


def _no_mounts() -> str:
    if not shutil.which("unshare"):
        return "unshare is not installed (Debian: util-linux)"
    test = [*_mounted(Path("/mnt"), 4096), "true"]
    if subprocess.run(test, capture_output=True, check=False).returncode != 0:
        return "file systems cannot be mounted here, nor in a namespace of their own"
    return ""


SETTINGS: Mapping[str, Setting] = {
    "plain": Setting(_plain, _nothing),
    "redis": Setting(_redis, _no_redis),
    "small-log-disk": Setting(_small_log_disk, _no_mounts),
    "small-shm": Setting(_small_shm, _no_mounts),
    "clock": Setting(_clock, _no_faketime, remove_segments),
}
