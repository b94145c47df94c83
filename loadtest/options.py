"""What a load test can be told: on the command line, and in Locust's web page."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["OPTIONS", "SCENARIOS", "LoadOptions", "add_options"]

SCENARIOS = ("ramp", "steady", "spike", "soak", "mixed")

# Flag, default, what it is for. Locust's web page shows them as fields, by these defaults.
OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("--scenario", "ramp", "ramp, steady, spike, soak, or mixed: steady with images of many sizes"),
    (
        "--arrival",
        "closed",
        "closed: each user asks when it has its answer; open: at random moments",
    ),
    ("--concurrency", 16, "closed arrival: how many users; of a ramp the highest number"),
    ("--rate", 60.0, "open arrival: requests a second; of a ramp the highest rate"),
    ("--levels", "", "a ramp's steps, such as 1,2,4,8: users or requests a second"),
    (
        "--duration",
        12.0,
        "seconds of each step of a ramp, of each third of a spike, or of the rest",
    ),
    ("--settle", 2.0, "seconds after each change of the load that are not counted"),
    ("--spike-factor", 4.0, "how many times the load a spike is"),
    ("--request-timeout", 10.0, "seconds that a request may take"),
    (
        "--max-in-flight",
        1000,
        "open arrival: most requests of a process at once; more are failures",
    ),
    ("--images", "", "folder of images to send; default: the four photos of the demo"),
    ("--mixed-sizes", False, "send each image in several sizes, in any scenario"),
    ("--model", "detection", "the served model"),
    ("--grpc-server", "grpc://127.0.0.1:8001", "what the gRPC users ask: Triton, or a balancer"),
    ("--http-server", "http://127.0.0.1:8000", "what the HTTP users ask"),
    ("--gateway", "http://127.0.0.1:8080", "what the REST users ask"),
    ("--api-key", "", "the gateway's API key"),
    (
        "--statistics",
        "",
        "where Triton's statistics are read, several by commas; default: the server",
    ),
    ("--p99-ms", 0.0, "SLO: highest 99th percentile of the latency in ms; 0 for none"),
    ("--max-fail", 0.0, "SLO: highest share of requests without detections, 0 to 1"),
    ("--tolerance", 0.02, "how far the report may be from Triton's statistics; 0: only shown"),
    ("--output", "loadtest_output", "folder of the report"),
)
_CHOICES = {"--scenario": SCENARIOS, "--arrival": ("closed", "open")}
_AT_LEAST_0 = {"--settle", "--p99-ms", "--max-fail", "--tolerance"}


def add_options(parser: Any, *, web: bool = False) -> None:
    """Add the options to a parser, Locust's or a plain one.

    Args:
        parser: The parser or the group.
        web: Whether the parser is Locust's, which takes more arguments.
    """
    for flag, default, text in OPTIONS:
        arguments: dict[str, Any] = {"help": text}
        if default is False:
            arguments |= {"action": "store_true"}
        else:
            shown = "" if default == "" else f" ({default:g})" if isinstance(default, float) else ""
            shown = shown or ("" if default == "" else f" ({default})")
            arguments |= {"default": default, "type": _kind(flag, default), "help": text + shown}
            arguments |= {"choices": _CHOICES[flag]} if flag in _CHOICES else {"metavar": "X"}
        if web:
            arguments |= {"include_in_web_ui": True, "is_secret": flag == "--api-key"}
        parser.add_argument(flag, **arguments)


def _kind(flag: str, default: Any) -> Any:
    if isinstance(default, str):
        return str

    def number(text: str) -> Any:
        value = type(default)(text)
        if not (value > 0 or (value == 0 and flag in _AT_LEAST_0)):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    number.__name__ = "a number"
    return number


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The options, checked; `OPTIONS` tells what each is for."""

    scenario: str
    arrival: str
    concurrency: int
    rate: float
    levels: tuple[int, ...]
    duration: float
    settle: float
    spike_factor: float
    request_timeout: float
    max_in_flight: int
    images: Path | None
    mixed_sizes: bool
    model: str
    grpc_server: str
    http_server: str
    gateway: str
    api_key: str
    statistics: tuple[str, ...]
    p99_ms: float
    max_fail: float
    tolerance: float
    output: Path

    @classmethod
    def from_namespace(cls, parsed: Any) -> LoadOptions:
        """Take them from a parsed command line, or from what the web page has made of it.

        Raises:
            ValueError: One is not usable; the message says which and what would be right.
        """
        values = {flag[2:].replace("-", "_"): default for flag, default, _ in OPTIONS}
        for name, default in values.items():
            given = getattr(parsed, name, default)
            try:  # the web page sends text
                values[name] = given if isinstance(default, bool) else type(default)(given)
            except ValueError:
                raise ValueError(f"--{name.replace('_', '-')}: {given!r} is not a number") from None
        for flag, choices in _CHOICES.items():
            if values[flag[2:]] not in choices:
                raise ValueError(f"{flag} is one of {', '.join(choices)}")
        values["mixed_sizes"] = bool(values["mixed_sizes"]) or values["scenario"] == "mixed"
        values["levels"] = _levels(values["levels"])
        values["images"] = Path(values["images"]) if values["images"] else None
        values["output"] = Path(values["output"])
        values["statistics"] = tuple(part for part in values["statistics"].split(",") if part)
        if values["settle"] >= values["duration"]:
            raise ValueError("--settle has to be shorter than --duration: nothing would be counted")
        if not 0 <= values["max_fail"] <= 1:
            raise ValueError("--max-fail is a share from 0 to 1")
        return cls(**values)

    @property
    def unit(self) -> str:
        """What a level of the load counts."""
        return "users" if self.arrival == "closed" else "requests/s"


def _levels(text: str) -> tuple[int, ...]:
    try:
        levels = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"--levels {text}: whole numbers, such as 1,2,4,8") from None
    if any(level < 1 for level in levels) or sorted(set(levels)) != list(levels):
        raise ValueError(f"--levels {text}: growing numbers above 0, such as 1,2,4,8")
    return levels
