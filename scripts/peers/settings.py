"""The settings that each peer is tried with; it is compared with its best."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PEERS", "Setting", "settings_of"]


@dataclass(frozen=True)
class Setting:
    """One way to run a peer.

    Attributes:
        peer: `flask` or `litserve`.
        title: What the setting is.
        arguments: Of the peer's service.
    """

    peer: str
    title: str
    arguments: tuple[str, ...] = ()


PEERS = {"flask": "Flask", "litserve": "LitServe"}


def settings_of(peer: str, cores: int) -> list[Setting]:
    """The settings to try; the first is the one to take where none is tried.

    LitServe's documentation asks for as many workers as cores on a CPU; the others vary what it
    offers beside. One thread a worker is what keeps workers from fighting for the cores.
    """
    one_thread = ("--threads", "1")
    each_core = ("--workers", str(cores))
    several = {
        "flask": [
            Setting(peer, "the runtime's defaults"),
            Setting(peer, f"{cores} threads that sleep while they wait", ("--threads", str(cores))),
            Setting(peer, "1 thread", one_thread),
        ],
        "litserve": [
            Setting(peer, f"{cores} workers of 1 thread", (*each_core, *one_thread)),
            Setting(
                peer, f"{cores} workers of 1 thread, 1 HTTP process",
                (*each_core, *one_thread, "--api-servers", "1"),
            ),
            Setting(
                peer, f"{cores} workers of 1 thread, fast queue",
                (*each_core, *one_thread, "--fast-queue"),
            ),
            Setting(
                peer, f"{cores} workers of 1 thread, fast queue, 1 HTTP process",
                (*each_core, *one_thread, "--fast-queue", "--api-servers", "1"),
            ),
            Setting(
                peer, f"{cores} workers of 1 thread, batches of 4 within 5 ms",
                (*each_core, *one_thread, "--batch", "4", "--batch-timeout", "0.005"),
            ),
            Setting(peer, f"{cores} workers of the runtime's defaults", each_core),
            Setting(
                peer, f"1 worker of {cores} threads, batches of 8 within 5 ms",
                ("--threads", str(cores), "--batch", "8", "--batch-timeout", "0.005"),
            ),
        ],
    }  # fmt: skip
    return several[peer]
