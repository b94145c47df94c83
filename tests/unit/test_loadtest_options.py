"""Options and scenarios of the load test."""

from __future__ import annotations

import argparse

import pytest

from loadtest.options import LoadOptions, add_options
from loadtest.plan import make_plan
from loadtest.run import main


def parsed(*arguments: str) -> LoadOptions:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return LoadOptions.from_namespace(parser.parse_args(arguments))


def levels(*arguments: str) -> list[int]:
    return [phase.level for phase in make_plan(parsed(*arguments))]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [1, 2, 4, 8, 16]),
        (("--concurrency", "6"), [1, 2, 4, 6]),
        (("--concurrency", "1"), [1]),
        (("--levels", "3,5"), [3, 5]),
        (("--arrival", "open", "--rate", "60"), [10, 20, 30, 40, 50, 60]),
        (("--arrival", "open", "--rate", "2"), [1, 2]),
        (("--scenario", "steady"), [16]),
        (("--scenario", "mixed", "--arrival", "open"), [60]),
        (("--scenario", "spike", "--concurrency", "2"), [2, 8, 2]),
        (("--scenario", "soak"), [16] * 10),
    ],
)
def test_a_scenario_is_levels_of_load_over_time(
    arguments: tuple[str, ...], expected: list[int]
) -> None:
    assert levels(*arguments) == expected


def test_a_soak_lasts_as_long_as_asked_and_settles_once() -> None:
    plan = make_plan(parsed("--scenario", "soak", "--duration", "600", "--settle", "5"))
    assert sum(phase.seconds - phase.settle for phase in plan) == pytest.approx(600)
    assert [phase.settle for phase in plan] == [5.0] + [0.0] * 9


def test_the_scenario_mixed_sends_mixed_sizes() -> None:
    assert parsed("--scenario", "mixed").mixed_sizes
    assert parsed("--mixed-sizes").mixed_sizes
    assert not parsed().mixed_sizes


def test_the_web_page_sends_text() -> None:
    form = argparse.Namespace(duration="7.5", concurrency="3", levels="", scenario="steady")
    options = LoadOptions.from_namespace(form)
    assert (options.duration, options.concurrency) == (7.5, 3)
    assert [phase.level for phase in make_plan(options)] == [3]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"levels": "4,2"}, "growing numbers"),
        ({"levels": "a"}, "whole numbers"),
        ({"duration": "long"}, "--duration: 'long' is not a number"),
        ({"scenario": "storm"}, "--scenario is one of ramp, steady"),
        ({"settle": 12, "duration": 12}, "--settle has to be shorter"),
        ({"max_fail": 2}, "--max-fail is a share"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(form: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadOptions.from_namespace(argparse.Namespace(**form))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--tags", "http"],
            "--tags http: say where to send it, with http://host:port in --server",
        ),
        (["--tags", "rest"], "--tags rest: say where to send it, with --gateway"),
        (["--tags", "grpc"], "there is no server at grpc://127.0.0.1:9: "),
        (["--tags", "rest", "--gateway", "http://:80"], "'http://:80' is no address of a server"),
    ],
)
def test_a_server_that_is_not_named_or_not_there(
    capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """What is not named is not sought on this machine: it might be another server."""
    assert main(["--server", "grpc://127.0.0.1:9", *arguments]) == 2
    assert message in capfd.readouterr().err
