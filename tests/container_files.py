"""Reads the compose file and the Dockerfiles as their tools do, as far as the tests need it."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::-([^}]*))?\}")


def settings(path: Path = ROOT / "deploy/settings.env") -> dict[str, str]:
    """The variables of an environment file."""
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Put variables in, as compose does: ${NAME} and ${NAME:-default}.

    Raises:
        KeyError: If a variable without a default is not set.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name is None:
            return "$"
        return values[name] if default is None else values.get(name) or default

    return _VARIABLE.sub(value, text)


def _interpolated(node: Any, values: Mapping[str, str]) -> Any:
    if isinstance(node, str):
        return interpolate(node, values)
    if isinstance(node, list):
        return [_interpolated(item, values) for item in node]
    if isinstance(node, dict):
        return {key: _interpolated(item, values) for key, item in node.items()}
    return node


def compose(values: Mapping[str, str] | None = None, *files: Path) -> dict[str, Any]:
    """The compose file with its variables put in.

    Args:
        values: The variables; those of settings.env by default.
        files: The files to read, of which services and secrets are put together.
    """
    chosen = settings() if values is None else values
    whole: dict[str, Any] = {}
    for file in files or (ROOT / "docker-compose.yml",):
        content = _interpolated(yaml.safe_load(file.read_text()), chosen)
        for key, value in content.items():
            whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    for service in whole["services"].values():
        variables = dict(service.get("environment", {}))
        service["environment"] = {
            name: chosen.get(name, "") if value is None else str(value)
            for name, value in variables.items()
        }
    return whole


def mounts(service: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The volumes of a service: source, target, options."""
    for volume in service.get("volumes", []):
        source, target, *options = volume.split(":")
        yield source, target, ",".join(options)


@dataclass
class Image:
    """What a stage of a Dockerfile makes.

    Attributes:
        copies: Files of the build's context: source, absolute target.
        runs: Commands of RUN, as written.
        environment: Its variables; `$NAME` in them is left.
        user, workdir, entrypoint, command, healthcheck, ports, stop_signal: As Docker has them.
    """

    copies: list[tuple[str, str]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    stop_signal: str = "SIGTERM"


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile: keyword, the rest on one line."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            keyword, _, rest = line.strip().partition(" ")
            yield keyword, re.sub(r"\s+", " ", rest.strip())


def image(path: Path, target: str | None = None) -> Image:
    """What a Dockerfile makes.

    Args:
        path: The Dockerfile.
        target: The stage; the last one by default.
    """
    stages: dict[str, Image] = {}
    current = Image()
    for keyword, rest in instructions(path):
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            parent = stages.get(base)
            current = Image() if parent is None else copy.deepcopy(parent)
            stages[name or str(len(stages))] = current
        elif stages:  # before it are the arguments of FROM
            _apply(current, keyword, rest)
    return stages[target] if target else current


def _apply(made: Image, keyword: str, rest: str) -> None:
    if keyword == "COPY" and not rest.startswith("--from"):
        source, target = rest.split()
        name = target.removeprefix("./") or source.rpartition("/")[2]
        made.copies.append((source, target if target[0] == "/" else f"{made.workdir}/{name}"))
    elif keyword == "RUN":
        made.runs.append(rest)
    elif keyword in ("ENV", "LABEL"):
        pairs = dict(part.split("=", 1) for part in shlex.split(rest))
        (made.environment if keyword == "ENV" else made.labels).update(pairs)
    elif keyword == "HEALTHCHECK":
        made.healthcheck = json.loads(rest.partition(" CMD ")[2])
    elif keyword in ("ENTRYPOINT", "CMD"):
        made.command = []
        setattr(made, "entrypoint" if keyword == "ENTRYPOINT" else "command", json.loads(rest))
    elif keyword == "EXPOSE":
        made.ports += map(int, rest.split())
    elif keyword in ("USER", "WORKDIR", "STOPSIGNAL"):
        attribute = {"USER": "user", "WORKDIR": "workdir", "STOPSIGNAL": "stop_signal"}[keyword]
        setattr(made, attribute, rest)
