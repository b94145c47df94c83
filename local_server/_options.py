"""What an operator can set: on the command line, else in variables such as `DETSERVE_HTTP_PORT`."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from local_server._ports import DEFAULT_PORTS

__all__ = ["PREFIX", "parse_options", "variables"]

PREFIX = "DETSERVE_"
_TRITON = "triton"  # the option that is no option: arguments for tritonserver itself
_YES = {"1", "true", "yes", "on"}
_NO = {"0", "false", "no", "off"}


def parse_options(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> argparse.Namespace:
    """Options from a command line, else from the environment, else the defaults.

    A variable that is empty counts as not set. A wrong value ends the program with status 2 and
    names the variable, unless the command line overrides it.

    Args:
        arguments: The command line, without the program.
        environment: The variables.
    """
    parser, actions = _parser()
    given = parser.parse_args(arguments)
    for action in actions:
        # An option that is not on the command line is absent: its default is suppressed.
        if getattr(given, action.dest, None) in (None, []):
            setattr(given, action.dest, _otherwise(parser, action, environment))
    return given


def variables() -> dict[str, str]:
    """The variables that are read, each with what it is for."""
    _, actions = _parser()
    return {_variable(action): action.help or "" for action in actions}


def _otherwise(
    parser: argparse.ArgumentParser, action: argparse.Action, environment: Mapping[str, str]
) -> Any:
    """The value of an option that is not on the command line."""
    name = _variable(action)
    text = environment.get(name, "")
    if not text:
        return _DEFAULTS.get(action.dest)
    try:
        return _reader(action)(text)
    except (ValueError, argparse.ArgumentTypeError) as error:
        parser.error(f"variable {name}: {error}")


def _reader(action: argparse.Action) -> Callable[[str], Any]:
    """How the text of a variable is read."""
    if action.nargs == 0:
        return _switch
    if action.dest == _TRITON:
        return shlex.split
    kind = action.type
    return kind if callable(kind) else str


def _variable(action: argparse.Action) -> str:
    name = "triton_arguments" if action.dest == _TRITON else action.dest
    return PREFIX + name.upper()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(
            f"a port is a number from 0 (any free one) to 65535, not {text!r}"
        )
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a number from 0 up is wanted, not {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is wanted, not {text!r}")
    return value


def _switch(text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise ValueError(f"1 or 0 is wanted, not {text!r}")
    return text.lower() in _YES


_DEFAULTS: Mapping[str, Any] = {
    "model_repository": Path("model_repository"),
    "host": "127.0.0.1",
    "cache_mb": 0.0,
    "verbose": False,
    "check_interval": 1.0,
    "startup_timeout": 120.0,
    "drain_timeout": 10.0,
    "allow_model_control": False,
    "allow_shared_memory": False,
    _TRITON: [],
}


def _parser() -> tuple[argparse.ArgumentParser, list[argparse.Action]]:
    parser = argparse.ArgumentParser(
        prog="python -m local_server",
        description="Serve a model repository with Triton, from pip or from its container.",
        epilog="Each option can be set by the variable in brackets too; the command line wins."
        " Exit status: 0 after a signal ended it in order, 1 if it does not start, 2 for a wrong"
        " option or variable.",
        argument_default=argparse.SUPPRESS,
    )

    actions: list[argparse.Action] = []

    def option(name: str, help_text: str, **more: Any) -> None:
        destination = name.replace("-", "_")
        default = _DEFAULTS.get(destination)
        shown = "" if default in (None, False, 0.0) else f"; default {default}"
        variable = PREFIX + destination.upper()
        actions.append(
            parser.add_argument(f"--{name}", help=f"{help_text}{shown} [{variable}]", **more)
        )

    switch = argparse.BooleanOptionalAction  # --no-... overrides a variable
    option("model-repository", "the folder of models", type=Path, metavar="DIR")
    option("host", "address to bind; 0.0.0.0 for all")
    for name, port in DEFAULT_PORTS.items():
        option(
            f"{name}-port",
            f"default {port}, or another where that is taken; 0 for any free one",
            type=_port,
            metavar="PORT",
        )
    option("cache-mb", "response cache in MiB; default none", type=_number, metavar="MIB")
    option("log-file", "where Triton's whole log goes", type=Path, metavar="FILE")
    option("verbose", "show Triton's whole log", action=switch)
    seconds: dict[str, Any] = {"type": _seconds, "metavar": "SECONDS"}
    option("check-interval", "time between checks of each model", **seconds)
    option("startup-timeout", "longest time for the start", **seconds)
    option("drain-timeout", "longest time for requests in flight at the end", **seconds)
    option("allow-model-control", "let clients load and unload models", action=switch)
    option(
        "allow-shared-memory",
        "let clients of this machine hand images over in shared memory",
        action=switch,
    )
    actions.append(
        parser.add_argument(
            _TRITON,
            nargs="*",
            metavar="ARGUMENT",
            help=f"for tritonserver itself, after -- [{PREFIX}TRITON_ARGUMENTS]",
        )
    )
    return parser, actions
