"""Services of the compose file in root folders of their own, with what the file says of them."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.container_files import ROOT, Image, compose, image, mounts, settings
from tests.server.roots import Root, make_root

__all__ = ["PORTS", "Service", "free_ports", "port_variables", "running"]

PORTS = ("HTTP", "GRPC", "METRICS", "HEALTH")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    listeners = [socket.create_server(("0.0.0.0", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def port_variables() -> dict[str, str]:
    """Free ports for a launcher."""
    ports = zip(PORTS, free_ports(len(PORTS)), strict=True)
    return {f"DETSERVE_{name}_PORT": str(port) for name, port in ports}


class Service:
    """A service of the compose file in a root folder of its own.

    Args:
        name: The service.
        folder: An empty folder.
        volumes: The folders that stand for the named volumes.
        variables: Values of settings, as a shell would set them.
    """

    def __init__(self, name: str, folder: Path, volumes: dict[str, Path], **variables: str) -> None:
        self.definition: dict[str, Any] = compose(settings() | variables)["services"][name]
        if "build" in self.definition:
            self.image = image(ROOT / self.definition["build"]["dockerfile"])
        else:  # somebody else's: what is said of it here
            self.image = Image(
                user=self.definition["user"],
                entrypoint=["/docker-entrypoint.sh"],
                healthcheck=self.definition["healthcheck"]["test"][1:],
            )
        for path in self.definition.get("env_file", []):
            self.definition["environment"] = settings(ROOT / path) | self.definition["environment"]
        self.root: Root = make_root(folder, self.image)
        for source, target, options in mounts(self.definition):
            place = ROOT / source if source.startswith("./") else volumes[source]
            self.root.mounts.append((place, target, "ro" not in options))
        self.root.tmpfs = [tuple(entry.split(":", 1)) for entry in self.definition["tmpfs"]]
        self.root.shm_size = self.definition.get("shm_size", "64m")

    def command(self, variables: Mapping[str, str], *, first: bool = False) -> list[str]:
        """What it runs; as the first of processes of its own, if it is to be."""
        entrypoint = self.definition.get("entrypoint", self.image.entrypoint)
        command = self.definition.get("command", self.image.command)
        return self.root.command(
            [*entrypoint, *command], self.definition["environment"] | dict(variables), first=first
        )

    def check(self, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run its health check."""
        command = self.root.command(
            self.image.healthcheck, self.definition["environment"] | dict(variables)
        )
        return subprocess.run(command, capture_output=True, text=True, timeout=30)


@contextmanager
def running(
    service: Service, log: Path, variables: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A service that runs and is healthy; it ends in order at its stop signal."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            service.command(variables), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 120
            while (checked := service.check(variables)).returncode:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, checked.stdout + log.read_text()
                time.sleep(0.2)
            yield process
            name = service.definition.get("stop_signal", service.image.stop_signal)
            process.send_signal(signal.Signals[name])
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
