"""What a measurement was made on, and what its processes use."""

from __future__ import annotations

from pathlib import Path

__all__ = ["processor_name", "shared_memory_mb"]


def processor_name() -> str:
    """What the system calls the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def shared_memory_mb(pid: int) -> float:
    """A process's memory in MiB, with pages that several processes share split among them (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
