"""Two Tritons behind one name, one of which leaves it and is ended: what do clients notice?

`unshare --mount python -m tests.server.draining AGE_S`, as root: the name is in an /etc/hosts of
this process's own. The clients are those of the gateway: gRPC, no retries. Prints what happened, as
JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from detection_client import DetectionClient, DetectionClientError
from local_server import TritonServer
from local_server._http import Connection
from local_server._ports import bind
from photos import PHOTOS, jpeg

NAME = "triton-grpc"
LEAVING, STAYING = "127.0.0.2", "127.0.0.3"
RESOLVE_AGAIN = 30.0  # gRPC asks for a name again after so many seconds at the earliest


class Clients:
    """Some clients that ask all the time.

    Args:
        url: Whom they ask.
        count: How many they are.
    """

    def __init__(self, url: str, count: int) -> None:
        self.answers = 0
        self.errors: list[str] = []
        self._url = url
        self._image = jpeg(PHOTOS[0])
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with DetectionClient(self._url, retries=0, timeout=30) as client:
            while not self._ending.wait(0.05):
                try:
                    client.detect(self._image)
                    self.answers += 1
                except DetectionClientError as error:
                    self.errors.append(f"{type(error).__name__}: {error}")

    def end(self) -> None:
        """Let them finish what they do."""
        self._ending.set()
        for thread in self._threads:
            thread.join()


def answered(server: TritonServer, host: str) -> int:
    """How many requests the ensemble of a server has answered."""
    return Connection(host, server.ports.http, None).statistics("detection").answered


def main() -> None:
    """Run it."""
    age_s = float(sys.argv[1])
    hosts = Path(tempfile.mkdtemp()) / "hosts"

    def name(*addresses: str) -> None:
        hosts.write_text("".join(f"{address} {NAME}\n" for address in addresses))

    name(LEAVING, STAYING)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    with bind(LEAVING, 0) as held:
        port = held.getsockname()[1]
    arguments = [
        f"--grpc-max-connection-age={round(1000 * age_s)}",
        "--grpc-max-connection-age-grace=30000",
    ]
    leaving, staying = (
        TritonServer(
            host=host,
            http_port=0,
            grpc_port=port,
            metrics_port=0,
            health_port=0,
            check_interval=600,  # so that all that is answered is the clients'
            startup_timeout=240,
            extra_arguments=arguments,
        )
        for host in (LEAVING, STAYING)
    )
    try:
        with leaving, staying:
            clients = Clients(f"grpc://{NAME}:{port}", 3)
            try:
                time.sleep(5)
                at_first = answered(leaving, LEAVING)
                name(STAYING)
                time.sleep(1.1 * age_s + RESOLVE_AGAIN + 3)
                before = answered(leaving, LEAVING)
                time.sleep(3)
                afterwards = answered(leaving, LEAVING) - before
                leaving.stop()
                so_far = clients.answers
                time.sleep(3)
                after_the_end = clients.answers - so_far
            finally:
                clients.end()
    finally:
        subprocess.run(["umount", "/etc/hosts"], check=True)
        hosts.unlink()
        hosts.parent.rmdir()
    print(
        json.dumps(
            {
                "asked_at_first": at_first,
                "asked_after_leaving": afterwards,
                "answers_after_its_end": after_the_end,
                "errors": clients.errors,
            }
        )
    )


if __name__ == "__main__":
    main()
