"""What a chaos run says of requests that failed, on requests made up for it."""

from __future__ import annotations

import pytest

from robustness.traffic import BARE, GATEWAY, RETRYING, Request
from robustness.trial import Case, Mark, Result, judge

HIT = 100.0
CASE = Case("some", "something", lambda _: None)
WELL = [Request(by, 98.0 + n, 98.1 + n) for n in range(10) for by in (BARE, RETRYING, GATEWAY)]
MARK = Mark(HIT, HIT + 0.05)


def judged(*failed: Request, marks: tuple[Mark, ...] = (MARK,), case: Case = CASE) -> Result:
    return judge(case, [*WELL, *failed], marks, HIT, recovered=True)


def counts(result: Result) -> tuple[int, int, int, int]:
    return result.in_flight, result.handed, result.refused, result.other


def test_all_well() -> None:
    result = judged()
    assert counts(result) == (0, 0, 0, 0)
    assert result.requests == len(WELL)
    assert result.last_failed_s is None
    assert result.failures == []


def test_in_flight_when_the_process_died() -> None:
    result = judged(Request(BARE, 99.9, 101.1, "ServerError", "gone"))
    assert counts(result) == (1, 0, 0, 0)
    assert result.last_failed_s == pytest.approx(1.1)
    assert result.failures == []


def test_sent_while_a_stopped_process_was_not_killed_yet() -> None:
    stopped = Mark(HIT, HIT + 2)
    assert counts(judged(Request(BARE, 101.5, 102.5, "ServerError"), marks=(stopped,)))[0] == 1


def test_given_to_a_dead_process() -> None:
    result = judged(Request(BARE, 101.0, 102.0, "ServerUnavailableError", unhealthy=True))
    assert counts(result) == (0, 1, 0, 0)
    assert result.failures == []


def test_refused() -> None:
    result = judged(Request(GATEWAY, 101.0, 101.0, "HTTP 503", refused=True))
    assert counts(result) == (0, 0, 1, 0)
    assert result.failures == []


@pytest.mark.parametrize(
    "request_",
    [
        Request(BARE, 99.0, 99.9, "ServerError"),  # before the fault
        Request(BARE, 99.0, 99.9, "ServerUnavailableError", refused=True),
        Request(BARE, 99.0, 99.9, "ServerUnavailableError", unhealthy=True),
        Request(BARE, 101.0, 103.0, "DeadlineExceededError"),  # after it, and not refused
        Request(GATEWAY, 101.0, 103.0, "HTTP 504"),
    ],
)
def test_lost_otherwise(request_: Request) -> None:
    result = judged(request_)
    assert counts(result) == (0, 0, 0, 1)
    assert result.failures == ["1 requests lost that may not be"]


def test_clients_that_repeat_requests_lose_none() -> None:
    lost = Request(RETRYING, 99.9, 101.1, "ServerUnavailableError")
    assert judged(lost).failures == ["1 lost by clients that repeat requests"]
    hard = Case("some", "something", lambda _: None, spares_clients=False)
    assert judged(lost, case=hard).failures == []
    gave_up = judged(Request(RETRYING, 101.0, 131.0, "DeadlineExceededError"))
    assert counts(gave_up) == (0, 0, 0, 0)
    assert gave_up.failures == ["1 lost by clients that repeat requests"]
    full = Request(RETRYING, 99.9, 101.1, "QueueFullError", refused=True)
    assert judged(full).failures == []


def test_what_else_fails_a_case() -> None:
    result = judge(
        CASE,
        [],
        [],
        HIT,
        recovered=False,
        left=["folder /tmp/x"],
        checks=[("this is so", True), ("that is so", False)],
    )
    assert result.failures == [
        "all was not well again in time",
        "there was no load",
        "left behind: folder /tmp/x",
        "not so: that is so",
    ]
