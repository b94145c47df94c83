"""An ensemble that exists as formulas, for tests of the tuner."""

from __future__ import annotations

import math
import random

from tuning.candidates import Machine
from tuning.measuring import Load, Measurement, TrialError
from tuning.settings import Plan

__all__ = ["MACHINE", "START", "Synthetic"]

MACHINE = Machine(cores=4, kind="cpu", backend="onnxruntime")
START: Plan = {
    "detector.instances": 2,
    "detector.threads": "auto",
    "detector.batching_delay_us": "off",
    "preprocess.batching_delay_us": 0,
    "postprocess.batching_delay_us": "off",
    "detector.preferred_batch_size": "",
    "preprocess.preferred_batch_size": "",
    "postprocess.preferred_batch_size": "",
    "preprocess.instances": 2,
    "postprocess.instances": 2,
    "ensemble.max_batch_size": 16,
    "preprocess.max_queue_size": 0,
    "detector.max_queue_size": 0,
    "postprocess.max_queue_size": 0,
    "preprocess.queue_timeout_us": 0,
    "detector.queue_timeout_us": 0,
    "postprocess.queue_timeout_us": 0,
}


class Synthetic:
    """An ensemble that exists as formulas: a bench whose optimum is known.

    Four cores, a detector of 10 ms of one core, which several threads make shorter at a cost, and
    preprocessing that waits for nothing. Speeds are noisy, and the machine drifts.
    """

    def __init__(self, noise: float = 0.01, drift: float = 0.2, seed: int = 3) -> None:
        self._random = random.Random(seed)
        self._noise = noise
        self._drift = drift
        self._now = 0.0
        self.measured = 0
        self.refuses: dict[str, int | str] = {}

    def capacity(self, plan: Plan) -> float:
        """Images a second, at the most."""
        instances = int(plan["detector.instances"])
        threads = max(1, 4 // instances)
        if plan["detector.threads"] != "auto":
            threads = int(plan["detector.threads"])
        used = min(4.0, instances * threads)
        crowded = 0.9 ** max(0, instances * threads - 4)  # more threads than cores get in each
        efficiency = 1 / (1 + 0.15 * (threads - 1))  # other's way, and threads wait for each other
        wait = 1.0 if plan["preprocess.batching_delay_us"] in (0, "off") else 0.9
        return 100 * used * efficiency * crowded * wait

    def measure(self, plan: Plan, copy: int, load: Load, seconds: float) -> Measurement:
        assert copy in (0, 1)
        if any(plan[name] == value for name, value in self.refuses.items()):
            raise TrialError("it does not load: too much")
        self._now += seconds
        self.measured += 1
        drift = 1 + self._drift * math.sin(self._now / 40)
        speed = self.capacity(plan) * drift * self._random.gauss(1, self._noise)
        if load.kind == "open":
            limit = int(plan["preprocess.max_queue_size"])
            wait_ms = 1e3 * limit / speed if limit else 1e3 * seconds
            good = speed if wait_ms <= 90 else 0.2 * speed
            return Measurement(speed, wait_ms / 2, wait_ms, goodput_per_s=good)
        # At the least four under way keep four cores busy.
        rate = speed * min(1.0, load.value / 4)
        latency = 1e3 * load.value / rate
        return Measurement(rate, latency, 1.2 * latency, goodput_per_s=rate)

    def fresh(self) -> None:
        pass

    def clock(self) -> float:
        return self._now
