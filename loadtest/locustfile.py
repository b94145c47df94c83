"""Load tests: `make loadtest`, or with Locust itself: locust -f loadtest/locustfile.py --tags grpc.

The tags grpc, http and rest choose the protocols; without one it is gRPC.
"""
# mypy: disable-error-code="misc"

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import gevent
import grpc.experimental.gevent as grpc_gevent  # type: ignore[import-untyped]
from locust import events

# Before any channel is made. A call in flight waits in a thread of gevent's pool, and the answers
# to those beyond its ten would be taken late.
grpc_gevent.init_gevent()
gevent.get_hub().threadpool.maxsize = 1000

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "scripts")]

from loadtest import users  # noqa: E402
from loadtest.options import LoadOptions, add_options  # noqa: E402
from loadtest.session import Session  # noqa: E402
from loadtest.shapes import PhaseShape  # noqa: E402
from loadtest.users.base import DetectionUser  # noqa: E402


class GrpcUser(users.GrpcUser):
    """Asks Triton over gRPC."""


class HttpUser(users.HttpUser):
    """Asks Triton over the HTTP inference protocol."""


class RestUser(users.RestUser):
    """Asks the gateway."""


class Scenario(PhaseShape):
    """The scenario that --scenario names."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_options(parser: Any) -> None:
    add_options(parser, web=True)


@events.init.add_listener  # type: ignore[untyped-decorator]
def _set_up(environment: Any, **_: Any) -> None:
    parsed = environment.parsed_options
    try:
        options = LoadOptions.from_namespace(parsed)
    except ValueError as error:
        logging.getLogger("loadtest").error("%s", error)
        sys.exit(2)
    wanted = set(parsed.tags or ["grpc"]) - set(parsed.exclude_tags or [])
    environment.user_classes = [
        user for user in environment.user_classes if user.protocol in wanted
    ]
    if not environment.user_classes:
        logging.getLogger("loadtest").error("--tags: grpc, http and rest choose the users")
        sys.exit(2)
    # Users that are stopped get their answers first, so that no request is lost to the figures.
    environment.stop_timeout = parsed.stop_timeout or options.request_timeout + 5
    protocols = [user.protocol for user in environment.user_classes]
    session = Session(environment, DetectionUser.recorder, protocols)
    shape = environment.shape_class
    if isinstance(shape, Scenario):
        shape.on_phase = session.on_phase
