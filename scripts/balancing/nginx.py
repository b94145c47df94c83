"""nginx with the files of `deploy/nginx`, outside containers, as a plain user."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["DEPLOY", "Nginx", "NginxError", "find_nginx", "render", "settings"]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "nginx"
_VARIABLE = re.compile(r"\$\{(BALANCER_\w+)\}")
_START_S = 10.0
_STOP_S = 20.0


class NginxError(Exception):
    """nginx is not there, or does not take its configuration."""


def find_nginx() -> str:
    """The program.

    Raises:
        NginxError: There is none.
    """
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise NginxError("there is no nginx: install it, on Debian with `apt-get install nginx`")
    return found


def settings(changes: Mapping[str, str]) -> dict[str, str]:
    """The settings of `balancer.env`, with some of one's own.

    Raises:
        NginxError: There is no such setting.
    """
    lines = (DEPLOY / "balancer.env").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    known = {name: value for name, _, value in pairs}
    if unknown := set(changes) - set(known):
        raise NginxError(f"there is no setting {', '.join(sorted(unknown))} in balancer.env")
    return known | dict(changes)


def render(changes: Mapping[str, str]) -> Path:
    """Write the configuration into BALANCER_DIR, as the entrypoint of nginx's image does.

    Args:
        changes: Settings other than those of `balancer.env`.

    Returns:
        The main file.

    Raises:
        NginxError: There is no such setting, or the shell failed.
    """
    values = settings(changes)
    script = f". '{DEPLOY / '15-balancer.envsh'}' && exec env -0"
    done = subprocess.run(
        ["sh", "-e", "-c", script],
        env={**os.environ, **values},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NginxError(f"the settings of the balancer cannot be used: {done.stderr.strip()}")
    variables = dict(pair.split("=", 1) for pair in done.stdout.split("\0") if "=" in pair)
    folder = Path(values["BALANCER_DIR"])
    for template in DEPLOY.glob("*.template"):
        text = _VARIABLE.sub(lambda match: variables[match[1]], template.read_text())
        (folder / template.stem).write_text(text)
    return folder / "nginx.conf"


class Nginx:
    """An nginx that runs while the context lasts, and leaves nothing.

    Args:
        changes: Settings other than those of `balancer.env`; BALANCER_DIR is a temporary folder.

    Attributes:
        folder: Where its files are.
        settings: All settings.
    """

    def __init__(self, changes: Mapping[str, str]) -> None:
        self._program = find_nginx()
        self.folder = Path(tempfile.mkdtemp(prefix="detserve-balancer-"))
        self.folder.chmod(0o711)  # nginx started by root has workers of another user
        try:
            own = {
                "BALANCER_DIR": str(self.folder),
                "BALANCER_HOST": "127.0.0.1",
                "BALANCER_ACCESS_LOG": str(self.folder / "access.log"),
            }
            self.settings = settings(own | dict(changes))
            self._configuration = render(self.settings)
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The master's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def access_log(self) -> Path:
        """A JSON document for each request."""
        return Path(self.settings["BALANCER_ACCESS_LOG"])

    @property
    def error_log(self) -> str:
        """What nginx has warned of so far."""
        return (self.folder / "stderr").read_text()

    def running(self) -> bool:
        """Whether nginx has not ended."""
        return self._process is not None and self._process.poll() is None

    def url(self, protocol: str) -> str:
        """Where it listens for ``grpc``, ``http``, ``gateway`` or ``status``."""
        scheme = "grpc" if protocol == "grpc" else "http"
        if self.settings["BALANCER_TLS_CERT"] and protocol != "status":
            scheme += "s"
        return f"{scheme}://127.0.0.1:{self.settings[f'BALANCER_{protocol.upper()}_PORT']}"

    def check(self) -> str:
        """What ``nginx -t`` says of the configuration.

        Raises:
            NginxError: It refuses it.
        """
        done = subprocess.run([*self._command, "-t"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NginxError(f"nginx refuses its configuration: {done.stderr.strip()}")
        return done.stderr

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            NginxError: It ends, or does not answer.
        """
        self.check()
        with (self.folder / "stderr").open("wb") as errors:
            self._process = subprocess.Popen([*self._command, "-g", "daemon off;"], stderr=errors)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NginxError(f"nginx does not start: {self.error_log.strip()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it with its workers, and remove its files."""
        try:
            if self._process is not None:
                self._process.terminate()  # at once: what is under way ends
                try:
                    self._process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _command(self) -> list[str]:
        return [
            self._program,
            *("-e", "stderr"),
            *("-p", str(self.folder)),
            *("-c", str(self._configuration)),
        ]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url('status')}/health", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False
