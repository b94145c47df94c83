"""What a soak calls flat, on series made up for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from robustness.flatness import COUNT, MEMORY, judge, judge_latency, theil_sen
from robustness.intervals import Interval
from robustness.processes import Usage
from robustness.sampling import Sample
from robustness.soak_verdict import Soak, judge_soak

MIB = 2**20
TIMES = np.arange(0, 1801, 15.0)  # half an hour
NOISE = np.random.default_rng(7).normal(0, 1, len(TIMES))


def memory(values: npt.NDArray[Any]) -> bool | None:
    return judge(list(TIMES), list(values), MEMORY).flat


class TestTheilSen:
    def test_nothing(self) -> None:
        assert theil_sen(np.array([]), np.array([])) == 0
        assert theil_sen(np.array([1.0]), np.array([5.0])) == 0

    def test_a_line(self) -> None:
        assert theil_sen(TIMES, 3 + 2 * TIMES) == pytest.approx(2)

    def test_outliers_do_not_move_it(self) -> None:
        values = 3 + 2 * TIMES
        values[::5] += 1e6
        assert theil_sen(TIMES, values) == pytest.approx(2, rel=0.01)

    def test_many_points(self) -> None:
        times = np.arange(50_000.0)
        assert theil_sen(times, 0.5 * times) == pytest.approx(0.5)


class TestMemory:
    def test_constant(self) -> None:
        verdict = judge(list(TIMES), [100 * MIB] * len(TIMES), MEMORY)
        assert verdict.flat is True
        assert (verdict.start, verdict.end, verdict.slope_per_hour) == (100 * MIB, 100 * MIB, 0)

    @pytest.mark.parametrize("sigma_mib", [0.05, 0.5, 3])
    def test_noise(self, sigma_mib: float) -> None:
        assert memory((100 + sigma_mib * NOISE) * MIB) is True

    def test_growth(self) -> None:
        verdict = judge(list(TIMES), list((100 + 8 * TIMES / 3600) * MIB), MEMORY)
        assert verdict.flat is False
        assert verdict.slope_per_hour == pytest.approx(8 * MIB)

    def test_growth_below_the_limit(self) -> None:
        assert memory((100 + 1.5 * TIMES / 3600) * MIB) is True

    def test_growth_under_noise(self) -> None:
        assert memory((100 + 8 * TIMES / 3600 + 0.3 * NOISE) * MIB) is False

    def test_growth_in_small_stairs(self) -> None:
        assert memory((100 + np.floor(10 * TIMES / 1800)) * MIB) is False

    def test_warming_up(self) -> None:
        assert memory((100 - 60 * np.exp(-TIMES / 120)) * MIB) is True

    def test_falling(self) -> None:
        assert memory((100 - 20 * TIMES / 3600) * MIB) is True

    @pytest.mark.parametrize("at_s", [300, 1000, 1350, 1700])
    def test_one_small_step(self, at_s: float) -> None:
        assert memory((100 + 0.4 * (at_s < TIMES)) * MIB) is True

    @pytest.mark.parametrize("at_s", [1200, 1350, 1500])
    def test_one_large_step(self, at_s: float) -> None:
        assert memory((100 + 30 * (at_s < TIMES)) * MIB) is False

    def test_a_large_step_while_warming_up(self) -> None:
        assert memory((100 + 30 * (TIMES > 600)) * MIB) is True

    @pytest.mark.parametrize("seconds", [0, 30, 150])
    def test_too_short(self, seconds: float) -> None:
        times = [t for t in TIMES if t < seconds]
        assert judge(times, [t * MIB for t in times], MEMORY).flat is None


class TestCount:
    def test_open_files_that_come_and_go(self) -> None:
        assert judge(list(TIMES), list(40 + np.round(3 * NOISE)), COUNT).flat is True

    def test_a_leak_of_files(self) -> None:
        assert judge(list(TIMES), list(np.floor(40 + TIMES / 60)), COUNT).flat is False


class TestLatency:
    def test_noise(self) -> None:
        assert judge_latency(list(120 + 15 * NOISE)).flat is True

    def test_growing(self) -> None:
        verdict = judge_latency(list(120 + TIMES / 15 + 5 * NOISE))
        assert verdict.flat is False
        assert verdict.start < verdict.end

    def test_an_excursion_in_the_middle(self) -> None:
        values = 120 + 5 * NOISE
        values[50:60] = 900
        assert judge_latency(list(values)).flat is True

    def test_too_short(self) -> None:
        assert judge_latency([]).flat is None
        assert judge_latency([100.0] * 8).flat is None


def soak_of(
    leak_mib_an_hour: float = 0, errors: dict[str, int] | None = None, **last: dict[str, int]
) -> Soak:
    """A made-up soak of half an hour."""
    soak = Soak(minutes=30, capacity_per_s=100, rate_per_s=80, interval_s=15)
    for number, t in enumerate(TIMES):
        size = int((50 + leak_mib_an_hour * t / 3600) * MIB)
        used = Usage(rss=size, pss=size, uss=size, threads=4, files=9)
        soak.samples.append(
            Sample(
                t_s=float(t),
                pids={"triton": 7},
                usage={"triton": used},
                shm_bytes=6 * MIB,
                shm_segments=6,
                folders=1,
                busy=0.9,
                steal=0.0,
                triton={"success": 1200 * number, "fail": 0},
            )
        )
    soak.intervals = [
        Interval(float(t), 15, 1200, 1200, 40.0, 90.0, dict(errors or {}), {}) for t in TIMES[:-1]
    ]
    if last:
        values = {name: getattr(soak.samples[-1], name) for name in Sample.__slots__}
        soak.samples[-1] = Sample(**{**values, **last})
    return soak


class TestSoak:
    def test_all_well(self) -> None:
        rows, problems = judge_soak(soak_of())
        assert problems == []
        assert {row.verdict.flat for row in rows} == {True}

    def test_a_leak(self) -> None:
        _, problems = judge_soak(soak_of(leak_mib_an_hour=10))
        assert len(problems) == 2
        assert problems[0].startswith("triton: rss is not flat")

    def test_errors(self) -> None:
        _, problems = judge_soak(soak_of(errors={"gRPC QueueFullError": 1}))
        assert problems == ["requests failed: 120 x gRPC QueueFullError"]

    def test_a_process_that_was_replaced(self) -> None:
        _, problems = judge_soak(soak_of(pids={"triton": 8}))
        assert problems == ["triton, process 7, has ended"]

    def test_triton_counts_failures(self) -> None:
        _, problems = judge_soak(soak_of(triton={"success": 144_000, "fail": 2}))
        assert problems == ["Triton counts 2 failed requests"]

    def test_triton_counts_less_than_its_clients(self) -> None:
        _, problems = judge_soak(soak_of(triton={"success": 143_999, "fail": 0}))
        assert problems == ["Triton counts 143999 answers, and its clients 144000"]

    def test_ended_early(self) -> None:
        soak = soak_of()
        soak.interrupted = True
        assert judge_soak(soak)[1] == ["it was ended before its time"]

    def test_nothing_done(self) -> None:
        assert judge_soak(Soak(minutes=1))[1] == ["no request was answered"]
