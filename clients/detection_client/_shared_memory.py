"""Large images handed to a server on this machine in shared memory rather than over the socket.

An image goes into a region that Triton has mapped; the request only names it. Regions are made as
requests under way need them, and used again. A region's name is removed as soon as Triton has
mapped it, so that nothing is left in /dev/shm however the client ends.
"""

from __future__ import annotations

import itertools
import mmap
import os
import secrets
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detection_client._errors import (
    DetectionClientError,
    InvalidInputError,
    QueueFullError,
    ServerError,
)

__all__ = ["MIN_BYTES", "Region", "RegionPool", "is_lost", "may_be_reused"]

# Smaller requests are no faster this way: see scripts/benchmark_transport.py.
MIN_BYTES = 256 * 1024
_GRANULE = 1 << 20
_MOST_FREE = 8
_MOST_RETIRED = 16
_FOLDER = Path("/dev/shm")
_LENGTH = struct.Struct("<I")


@dataclass(eq=False)
class Region:
    """A piece of shared memory.

    Attributes:
        name: What Triton calls it.
        size: In bytes.
        memory: As mapped here.
    """

    name: str
    size: int
    memory: mmap.mmap

    @property
    def key(self) -> str:
        """What the system calls it, as Triton wants it."""
        return f"/{self.name}"

    def write(self, images: Sequence[bytes]) -> None:
        """Put images in, as Triton serialises BYTES: each behind its length in four bytes."""
        place = 0
        for data in images:
            self.memory[place : place + 4] = _LENGTH.pack(len(data))
            place += 4
            self.memory[place : place + len(data)] = data
            place += len(data)

    def unlink(self) -> None:
        """Remove its name; whoever has mapped it keeps it."""
        (_FOLDER / self.name).unlink(missing_ok=True)


class RegionPool:
    """The regions of one connection. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._all: set[Region] = set()
        self._retired: list[str] = []  # names that the server still knows
        self._numbers = itertools.count(1)
        self._prefix = f"detserve-client-{os.getpid()}-{secrets.token_hex(4)}"

    def take(self, images: Sequence[bytes]) -> tuple[Region, bool]:
        """A region with room for the images, and whether it is new, unknown to the server."""
        needed = serialised_size(images)
        with self._lock:
            fitting = [region for region in self._free if region.size >= needed]
            if fitting:
                region = min(fitting, key=lambda one: one.size)
                self._free.remove(region)
                return region, False
        region = self._make(-(-needed // _GRANULE) * _GRANULE)
        with self._lock:
            self._all.add(region)
        return region, True

    def give(self, region: Region) -> str | None:
        """Let a region be used again; the name of one too many, for the server to forget."""
        with self._lock:
            if region not in self._all:
                return None
            self._free.append(region)
            if len(self._free) <= _MOST_FREE:
                return None
            spare = min(self._free, key=lambda one: one.size)  # or small ones would pile up
            self._drop(spare)
            return spare.name

    def discard(self, region: Region) -> str | None:
        """Never use a region again; returns the name of an older one, for the server to forget."""
        with self._lock:
            self._drop(region)
            self._retired.append(region.name)
            return self._retired.pop(0) if len(self._retired) > _MOST_RETIRED else None

    def keep(self, name: str) -> None:
        """Remember a name that the server could not forget yet: it is in use."""
        with self._lock:
            self._retired.append(name)

    def clear(self) -> list[str]:
        """Forget all regions; their names, for the server to forget."""
        with self._lock:
            names = [*self._retired, *(region.name for region in self._all)]
            self._retired.clear()
            for region in list(self._all):
                self._drop(region)
        return names

    def _drop(self, region: Region) -> None:
        self._all.discard(region)
        if region in self._free:
            self._free.remove(region)
        region.unlink()

    def _make(self, size: int) -> Region:
        name = f"{self._prefix}-{next(self._numbers)}"
        try:
            file = os.open(_FOLDER / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(file, 0, size)  # a full /dev/shm is told here, not by a signal
                return Region(name, size, mmap.mmap(file, size))
            except OSError:
                (_FOLDER / name).unlink()
                raise
            finally:
                os.close(file)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InvalidInputError(
                f"shared_memory: no {size:,} bytes to be had in {_FOLDER}: {reason.lower()}"
            ) from None


def serialised_size(images: Sequence[bytes]) -> int:
    """Bytes that images take in a region."""
    return sum(_LENGTH.size + len(data) for data in images)


def is_lost(error: DetectionClientError) -> bool:
    """Whether the server does not know a region (any more): it has been started anew, say."""
    return "shared memory region" in error.message.lower()


def may_be_reused(error: DetectionClientError | None) -> bool:
    """Whether the server has done with a request's region after this outcome."""
    return error is None or isinstance(error, (InvalidInputError, QueueFullError, ServerError))
