"""Keeps the lists of servers that nginx includes in step with the servers' health.

The open version of nginx has no active checks, and its passive ones see lost connections alone: a
Triton whose model process is dead answers, and calls itself ready.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from balancing.health import Kind, Server, ask, look_up

__all__ = ["Checker", "replace_file"]


@dataclass
class State:
    """What is known of a server.

    Attributes:
        up: Whether it gets requests.
        streak: How many answers in a row have spoken against `up`.
        problem: What its last answer said.
    """

    up: bool
    streak: int = 0
    problem: str = ""


@dataclass
class Checker:
    """Keeps the lists of servers in step with the servers' health.

    A server is taken out after ``fall`` failed checks in a row and back in after ``rise`` good
    ones. One that was not there before (a new container) comes in with its first good one. Where
    none of a kind is healthy all of them stay in: a checker that errs must not stop what works.

    Attributes:
        folder: BALANCER_DIR.
        hosts: The servers of the settings, by their kind.
        options: Of each line, behind the address.
        fall: Failed checks until a server is taken out.
        rise: Good checks until it is back.
        timeout: Seconds that a health endpoint may take.
        say: Takes the lines of the log.
    """

    folder: Path
    hosts: Mapping[Kind, Sequence[tuple[str, tuple[int, ...]]]]
    options: str
    fall: int
    rise: int
    timeout: float
    say: Callable[[str], None]
    _known: dict[str, list[str]] = field(default_factory=dict)
    _states: dict[Server, State] = field(default_factory=dict)
    _told: str = ""
    _reload_due: bool = False

    def check(self) -> None:
        """Ask every server once, and act on what they say."""
        servers = self._servers()
        for gone in set(self._states) - set(servers):
            self.say(f"{gone} is gone")
            del self._states[gone]
        if servers:
            with ThreadPoolExecutor(min(32, len(servers))) as pool:
                problems = list(pool.map(lambda server: ask(server, self.timeout), servers))
            first = not self._states
            for server, problem in zip(servers, problems, strict=True):
                self._learn(server, problem, first=first)
        for kind in self.hosts:
            self._write(kind, [server for server in servers if server.kind is kind])
        if self._reload_due:
            self._reload()

    def _servers(self) -> list[Server]:
        servers = []
        for kind, hosts in self.hosts.items():
            for host, ports in hosts:
                # A name server that does not answer takes nothing out.
                addresses = look_up(host) or self._known.get(host, [])
                self._known[host] = addresses
                servers += [Server(kind, address, ports) for address in addresses]
        return list(dict.fromkeys(servers))

    def _learn(self, server: Server, problem: str, *, first: bool) -> None:
        state = self._states.get(server)
        if state is None:
            # At the start everything is in, as nginx has it, until it is known to be ill.
            state = self._states[server] = State(up=first or not problem)
            self.say(f"{server} is {'in' if state.up else 'out: ' + problem}")
        state.problem = problem
        state.streak = state.streak + 1 if bool(problem) == state.up else 0
        if state.streak >= (self.fall if state.up else self.rise):
            state.up, state.streak = not state.up, 0
            self.say(f"{server} is {'back in' if state.up else 'out: ' + problem}")

    def _write(self, kind: Kind, servers: Sequence[Server]) -> None:
        if not servers:  # nothing is known of them: nginx keeps what it has
            return
        up = [self._states[server].up for server in servers]
        if not any(up):
            up = [True] * len(servers)
            if self._told != (told := f"no {kind.name} is healthy: all of them stay in"):
                self.say(told)
                self._told = told
        elif self._told.startswith(f"no {kind.name} "):
            self._told = ""
        for name, port in kind.ports.items():
            lines = (
                f"server {server.address}:{server.ports[port]} {self.options}"
                f"{'' if ok else ' down'};\n"
                for server, ok in zip(servers, up, strict=True)
            )
            if replace_file(self.folder / "servers" / f"{name}.conf", "".join(lines)):
                self._reload_due = True

    def _reload(self) -> None:
        try:
            pid = int((self.folder / "nginx.pid").read_text())
            if not Path(f"/proc/{pid}/comm").read_text().startswith("nginx"):
                raise ProcessLookupError(f"process {pid} is not nginx")
            os.kill(pid, signal.SIGHUP)
        except (OSError, ValueError) as error:  # it starts, or stops: tried again next time
            self.say(f"nginx cannot be told: {error}")
            return
        self._reload_due = False
        counts = []
        for kind in self.hosts:
            states = [state for server, state in self._states.items() if server.kind is kind]
            if states:
                counts.append(f"{sum(s.up for s in states)} of {len(states)} {kind.name}s healthy")
        self.say(f"nginx reads its servers anew: {', '.join(counts)}")


def replace_file(path: Path, text: str) -> bool:
    """Write a file whole or not at all; whether that changed it."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_text() == text:
            return False
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.chmod(name, 0o644)  # noqa: PTH101 - of the path that mkstemp gave
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        os.unlink(name)  # noqa: PTH108
        raise
    return True
