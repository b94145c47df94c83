"""Looks at every endpoint at once, again and again."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException

from status_page.page import Status
from status_page.scrape import Scrape, UnreachableError, scrape
from status_page.summary import Gateway, Server, Two, gateway_of, server_of, stages_of

__all__ = ["Addresses", "Watcher"]

_TIMEOUT = 5.0


@dataclass(frozen=True)
class Addresses:
    """Where the endpoints are, host:port.

    Attributes:
        tritons: Metrics of Triton.
        launchers: Health endpoints of launchers; each belongs to the Triton in its place.
        gateways: Gateways.
        optional: Those that may be missing.
    """

    tritons: Sequence[str]
    launchers: Sequence[str]
    gateways: Sequence[str]
    optional: frozenset[str] = frozenset()


@dataclass
class _Look:
    scrapes: dict[str, Scrape] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    not_ready: set[str] = field(default_factory=set)


class Watcher:
    """Remembers the last look, for the rates.

    Args:
        addresses: Where to look.
    """

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._last = self._look()

    def status(self) -> Status:
        """Look again, and sum up."""
        before, now = self._last, self._look()
        self._last = now
        where = self._addresses
        pairs = {
            address: Two(before.scrapes.get(address, scraped), scraped)
            for address, scraped in now.scrapes.items()
        }
        notes = [
            f"{problem}; none was asked for" for address, problem in now.problems.items()
            if address in where.optional
        ]  # fmt: skip
        tritons = [pairs[address] for address in where.tritons if address in pairs]
        return Status(
            time=time.strftime("%H:%M:%S"),
            seconds=max((two.seconds for two in pairs.values()), default=0.0),
            servers=self._servers(now),
            stages=stages_of(tritons),
            gateways=self._gateways(now, pairs),
            unreachable=[
                problem
                for address, problem in now.problems.items()
                if address not in where.optional
            ],
            notes=notes,
        )

    def _servers(self, now: _Look) -> list[Server]:
        where, servers = self._addresses, []
        for index in range(max(len(where.tritons), len(where.launchers))):
            pair = [
                addresses[index] if index < len(addresses) else None
                for addresses in (where.tritons, where.launchers)
            ]
            triton, launcher = (now.scrapes.get(address) if address else None for address in pair)
            if triton is not None or launcher is not None:
                servers.append(server_of(pair[0] or pair[1] or "", triton, launcher))
        return servers

    def _gateways(self, now: _Look, pairs: dict[str, Two]) -> list[Gateway]:
        return [
            gateway_of(address, pairs[address], ready=address not in now.not_ready)
            for address in self._addresses.gateways
            if address in pairs
        ]

    def _look(self) -> _Look:
        look, where = _Look(), self._addresses

        def at(address: str) -> None:
            try:
                look.scrapes[address] = scrape(f"http://{address}/metrics")
            except UnreachableError as error:
                look.problems[address] = str(error)

        def ready(address: str) -> None:
            try:
                urllib.request.urlopen(f"http://{address}/readyz", timeout=_TIMEOUT).close()
            except urllib.error.HTTPError as error:
                error.close()
                look.not_ready.add(address)
            except (OSError, HTTPException):  # `at` tells
                look.not_ready.add(address)

        jobs: list[tuple[Callable[[str], None], str]] = [
            (at, address) for address in (*where.tritons, *where.launchers, *where.gateways)
        ]
        jobs += [(ready, address) for address in where.gateways]
        with ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(lambda job: job[0](job[1]), jobs))
        return look
