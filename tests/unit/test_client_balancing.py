"""Several servers of one client: their addresses, and which one a request goes to."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from detection_client import (
    AsyncDetectionClient,
    DeadlineExceededError,
    DetectionClient,
    InvalidInputError,
    QueueFullError,
    ServerUnavailableError,
)
from detection_client import _servers as rules
from detection_client._servers import Servers

Client = type[DetectionClient] | type[AsyncDetectionClient]
NAMES = ("a", "b", "c")


@pytest.fixture(params=[DetectionClient, AsyncDetectionClient])
def client(request: pytest.FixtureRequest) -> Client:
    found: Client = request.param
    return found


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("grpc://a:8001,b:8001", "grpc://a:8001,b:8001"),
        ("grpc://a, b,[::1]:9001", "grpc://a:8001,b:8001,[::1]:9001"),
        ("http://a:8000/one,http://b/two", "http://a:8000/one,b:8000/two"),
        (["grpcs://a", "grpcs://b"], "grpcs://a:443,b:443"),
        (("grpc://a",), "grpc://a:8001"),
    ],
)
def test_addresses_understood(client: Client, url: str | list[str], shown: str) -> None:
    assert client(url).url == shown


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ([], "name a server"),
        ("grpc://a,", "does not name a host"),
        ("a,grpc://b", "does not name a protocol"),
        ("grpc://a,a:8001", "named twice"),
        ("grpc://a,http://b", "one protocol"),
        (["grpc://a", "grpcs://b"], "one protocol"),
    ],
)
def test_addresses_refused(client: Client, url: str | list[str], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        client(url)


def test_shared_memory_is_for_one_server(client: Client) -> None:
    with pytest.raises(InvalidInputError, match="shared_memory is for one server"):
        client("grpc://127.0.0.1:1,127.0.0.1:2", shared_memory=True)


def ask(servers: Servers, down: dict[str, Exception], timeout: float = 10) -> list[str]:
    """One call in which some servers fail; the servers that it went to."""
    call = servers.call(timeout)
    asked: list[str] = []
    while True:
        with call.attempt() as attempt:
            name = servers.urls[attempt.index]
            asked.append(name)
            if name in down:
                raise down[name]
            return asked


def gone(name: str) -> ServerUnavailableError:
    return ServerUnavailableError(f"cannot connect to {name}")


class TestChoice:
    def test_one_after_the_other_where_all_are_idle(self) -> None:
        servers = Servers(NAMES)
        assert [ask(servers, {})[0] for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]

    def test_the_one_with_the_fewest_requests_under_way(self) -> None:
        servers = Servers(NAMES)
        slow = servers.call(10).attempt()
        assert slow.index == 0
        assert Counter(ask(servers, {})[0] for _ in range(6)) == {"b": 3, "c": 3}
        slow.__exit__(None, None, None)
        assert ask(servers, {}) == ["a"]

    def test_an_interrupted_request_is_no_longer_under_way(self) -> None:
        servers = Servers(NAMES)
        with pytest.raises(KeyboardInterrupt), servers.call(10).attempt():
            raise KeyboardInterrupt
        assert Counter(ask(servers, {})[0] for _ in range(6)) == {"a": 2, "b": 2, "c": 2}

    def test_from_many_threads(self) -> None:
        servers = Servers(NAMES)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(servers, {"b": gone("b")})[-1], range(400)))
        assert set(answers) == {"a", "c"}
        # Nothing counts as under way any more: turns are taken as in the beginning.
        assert Counter(ask(servers, {})[-1] for _ in range(4))["a"] == 2


class TestFailure:
    def test_the_request_goes_to_the_next_and_the_server_is_set_aside(self) -> None:
        servers = Servers(NAMES)
        assert ask(servers, {"a": gone("a")}) == ["a", "b"]
        asked = [ask(servers, {"a": gone("a")}) for _ in range(20)]
        assert all(len(one) == 1 and one != ["a"] for one in asked)

    def test_after_a_pause_one_request_tries_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rules, "FIRST_PAUSE_S", 0.02)
        servers = Servers(NAMES)
        ask(servers, {"a": gone("a")})
        time.sleep(0.03)
        trial = servers.call(10).attempt()
        assert trial.index == 0
        assert trial.timeout <= 5  # the rest is for another server
        assert all("a" not in ask(servers, {}) for _ in range(6))
        trial.__exit__(None, None, None)
        assert Counter(ask(servers, {})[0] for _ in range(6))["a"] == 2

    def test_pauses_grow_to_a_limit_and_begin_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rules, "FIRST_PAUSE_S", 1e-4)
        monkeypatch.setattr(rules, "LONGEST_PAUSE_S", 4e-4)
        servers = Servers(("a", "b"))
        pauses = []
        for _ in range(4):
            while ask(servers, {"a": gone("a")})[0] != "a":
                pass
            state = servers._servers[0]
            pauses.append(state.aside_until - state.aside_since)
        for pause, least in zip(pauses, (0.75e-4, 1.5e-4, 3e-4, 3e-4), strict=True):
            assert least * 0.99 <= pause <= least / 0.75 * 1.01
        time.sleep(0.01)
        assert ask(servers, {}) == ["a"]
        assert servers._servers[0].failures == 0

    def test_many_requests_lost_at_once_are_one_failure(self) -> None:
        servers = Servers(("a", "b"))
        attempts = [servers.call(10).attempt() for _ in range(6)]
        for attempt in attempts:
            if attempt.index == 0:
                assert attempt.__exit__(None, gone("a"), None)
        assert servers._servers[0].failures == 1

    def test_all_gone_asks_each_once_and_names_them(self) -> None:
        servers = Servers(NAMES)
        down: dict[str, Exception] = {name: gone(name) for name in NAMES}
        with pytest.raises(ServerUnavailableError, match=r"connect to c \(and .* a; .* b\)"):
            ask(servers, down)
        assert ask(servers, {"a": down["a"], "b": down["b"]})[-1] == "c"

    def test_the_clients_own_mistake_is_no_failure(self) -> None:
        servers = Servers(NAMES)
        with pytest.raises(InvalidInputError, match="no image"):
            ask(servers, {"a": InvalidInputError("no image")})
        assert [ask(servers, {})[0] for _ in range(3)] == ["b", "c", "a"]

    def test_no_time_left(self) -> None:
        servers = Servers(NAMES)
        call = servers.call(0.01)
        attempt = call.attempt()
        time.sleep(0.02)
        assert not attempt.__exit__(None, gone("a"), None)
        with pytest.raises(DeadlineExceededError, match=r"no answer from a within 0\.01 s"):
            call.attempt()


class TestDeadline:
    def test_a_silent_server_is_set_aside(self) -> None:
        servers = Servers(NAMES)
        attempt = servers.call(0.01).attempt()
        time.sleep(0.02)
        assert not attempt.__exit__(None, DeadlineExceededError("no answer"), None)
        assert all(ask(servers, {}) != ["a"] for _ in range(6))

    def test_a_slow_server_that_answers_others_is_not(self) -> None:
        servers = Servers(("a", "b"))
        attempts = [servers.call(10).attempt() for _ in range(3)]
        slow, _, quick = attempts
        assert (slow.index, quick.index) == (0, 0)
        quick.__exit__(None, None, None)
        slow.__exit__(None, DeadlineExceededError("no answer"), None)
        assert servers._servers[0].failures == 0

    def test_a_trial_that_gets_no_answer_leaves_time_for_another(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rules, "FIRST_PAUSE_S", 0.01)
        servers = Servers(NAMES)
        ask(servers, {"a": gone("a")})
        time.sleep(0.02)
        asked = ask(servers, {"a": DeadlineExceededError("no answer")})
        assert asked[0] == "a"
        assert len(asked) == 2


class TestFullQueue:
    def test_one_other_server_is_asked(self) -> None:
        servers = Servers(NAMES)
        full = QueueFullError("busy")
        assert ask(servers, {"a": full}) == ["a", "b"]
        assert ask(servers, {}) == ["c"]
        assert ask(servers, {}) == ["a"]  # it was not set aside

    def test_servers_that_are_all_full_get_a_tenth_more_at_most(self) -> None:
        servers = Servers(NAMES)
        counts = Counter[int]()
        for _ in range(500):
            call = servers.call(10)
            while call.attempt().__exit__(None, QueueFullError("busy"), None):
                pass
            counts[len(call.tried)] += 1
        assert set(counts) == {1, 2}
        assert 50 <= counts[2] <= 60

    def test_full_goes_before_gone(self) -> None:
        servers = Servers(("a", "b"))
        with pytest.raises(QueueFullError, match=r"busy \(and cannot connect to b\)"):
            ask(servers, {"a": QueueFullError("busy"), "b": gone("b")})
