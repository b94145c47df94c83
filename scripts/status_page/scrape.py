"""One look at an endpoint of metrics."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Scrape", "UnreachableError", "scrape"]

_TIMEOUT = 5.0
_Samples = list[tuple[Mapping[str, str], float]]


class UnreachableError(Exception):
    """An endpoint does not answer with metrics; the message says which and why."""


@dataclass(frozen=True)
class Scrape:
    """What an endpoint has answered.

    Attributes:
        moment: When, in seconds on the monotonic clock.
        samples: By the name of the metric, without the suffix `_total` of counters.
    """

    moment: float = 0.0
    samples: Mapping[str, _Samples] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether there is such a metric."""
        return bool(self.samples.get(name))

    def total(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels; 0 if there are none."""
        return sum(
            value
            for found, value in self.samples.get(name, ())
            if all(found.get(label) == wanted for label, wanted in labels.items())
        )

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Sums of a metric's samples that have these labels, by another label."""
        sums: dict[str, float] = {}
        for found, value in self.samples.get(name, ()):
            if all(found.get(key) == wanted for key, wanted in labels.items()):
                key = found.get(label, "")
                sums[key] = sums.get(key, 0.0) + value
        return sums


def scrape(url: str) -> Scrape:
    """Fetch and read an endpoint's metrics.

    Raises:
        UnreachableError: It does not answer, or not with metrics.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        error.close()
        raise UnreachableError(
            f"{url} answers with an error: {error.code} {error.reason}"
        ) from None
    except urllib.error.URLError as error:
        raise UnreachableError(f"no answer from {url}: {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: it is no text
        raise UnreachableError(f"no answer from {url}: {error}") from None
    samples: dict[str, _Samples] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removesuffix("_total")
                samples.setdefault(name, []).append((sample.labels, sample.value))
    except ValueError:
        samples.clear()
    if not samples:
        raise UnreachableError(f"{url} does not answer with metrics: is the port another's?")
    return Scrape(time.monotonic(), samples)
