"""Restarts in order under load, and the helpers of a deployment that die."""

from __future__ import annotations

import signal
import time

from robustness.trial import Case, Trial

__all__ = ["CASES"]


def _restart_launcher(trial: Trial) -> None:
    # No process counts as dead: what is in flight has to be answered.
    trial.now_hit()
    before = trial.service.launcher.send(signal.SIGTERM)
    restarted = trial.wait_until(lambda: trial.service.launcher.pid != before, 40)
    trial.check("the restart policy has started the launcher again", restarted)


def _restart_gateway(trial: Trial) -> None:
    trial.now_hit()
    before = trial.service.gateway.send(signal.SIGTERM)
    restarted = trial.wait_until(lambda: trial.service.gateway.pid != before, 40)
    trial.check("the restart policy has started the gateway again", restarted)


def _kill_redis(trial: Trial) -> None:
    redis = trial.service.helpers["redis"]
    before = redis.pid
    with trial.dying([before]):
        redis.send(signal.SIGKILL)
    restarted = trial.wait_until(lambda: redis.pid != before, 15)
    trial.check("the restart policy has started Redis again", restarted)
    time.sleep(1)
    failed = [one for one in trial.traffic.between(trial.start, time.monotonic()) if one.error]
    trial.check("no request has failed", not failed)


CASES = (
    Case("restart-launcher", "SIGTERM of the launcher, then a new one", _restart_launcher),
    Case("restart-gateway", "SIGTERM of the gateway, then a new one", _restart_gateway),
    Case("kill-redis", "kill -9 of the gateway's Redis", _kill_redis, setting="redis"),
)
