"""The launcher's options: the command line, else variables, else the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_server._options import parse_options, variables


def test_the_defaults() -> None:
    options = parse_options([], {})
    assert options.model_repository == Path("model_repository")
    assert (options.host, options.http_port, options.cache_mb) == ("127.0.0.1", None, 0)
    assert (options.check_interval, options.drain_timeout) == (1, 10)
    assert (options.verbose, options.log_file, options.triton) == (False, None, [])


def test_variables_are_read() -> None:
    options = parse_options(
        [],
        {
            "DETSERVE_MODEL_REPOSITORY": "/models",
            "DETSERVE_HOST": "0.0.0.0",
            "DETSERVE_HTTP_PORT": "9000",
            "DETSERVE_HEALTH_PORT": "0",
            "DETSERVE_CACHE_MB": "64.5",
            "DETSERVE_LOG_FILE": "/log/triton.log",
            "DETSERVE_VERBOSE": "Yes",
            "DETSERVE_CHECK_INTERVAL": "2.5",
            "DETSERVE_DRAIN_TIMEOUT": "20",
            "DETSERVE_ALLOW_MODEL_CONTROL": "0",
            "DETSERVE_TRITON_ARGUMENTS": "--trace-config 'mode=open telemetry'",
        },
    )
    assert options.model_repository == Path("/models")
    assert (options.host, options.http_port, options.health_port) == ("0.0.0.0", 9000, 0)
    assert (options.grpc_port, options.metrics_port) == (None, None)
    assert (options.cache_mb, options.log_file) == (64.5, Path("/log/triton.log"))
    assert (options.verbose, options.allow_model_control) == (True, False)
    assert (options.check_interval, options.drain_timeout) == (2.5, 20)
    assert options.triton == ["--trace-config", "mode=open telemetry"]


def test_the_command_line_wins_even_over_a_wrong_variable() -> None:
    options = parse_options(
        ["--http-port", "8100", "--no-verbose", "--", "--log-info=1"],
        {
            "DETSERVE_HTTP_PORT": "http",
            "DETSERVE_VERBOSE": "1",
            "DETSERVE_TRITON_ARGUMENTS": "--log-info=0",
        },
    )
    assert (options.http_port, options.verbose) == (8100, False)
    assert options.triton == ["--log-info=1"]


def test_an_empty_variable_counts_as_not_set() -> None:
    assert parse_options([], dict.fromkeys(variables(), "")) == parse_options([], {})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("DETSERVE_HTTP_PORT", "http", "a port is a number from 0"),
        ("DETSERVE_GRPC_PORT", "65536", "a port is a number from 0"),
        ("DETSERVE_HEALTH_PORT", "-1", "a port is a number from 0"),
        ("DETSERVE_CACHE_MB", "-1", "a number from 0 up"),
        ("DETSERVE_CACHE_MB", "nan", "a number from 0 up"),
        ("DETSERVE_CHECK_INTERVAL", "0", "seconds above 0"),
        ("DETSERVE_DRAIN_TIMEOUT", "inf", "seconds above 0"),
        ("DETSERVE_STARTUP_TIMEOUT", "2 min", "seconds above 0"),
        ("DETSERVE_VERBOSE", "maybe", "1 or 0 is wanted"),
        ("DETSERVE_TRITON_ARGUMENTS", "--log 'open", "No closing quotation"),
    ],
)
def test_a_wrong_variable_is_named(
    name: str, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options([], {name: value})
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: variable {name}: " in error
    assert reason in error


def test_every_variable_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help"], {})
    shown = capsys.readouterr().out
    assert len(variables()) == 15
    for name in variables():
        assert f"[{name}]" in shown
