"""Autoscaling: the adapter's queries run in Prometheus, and what the autoscaler makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.manifests import MANIFESTS, Object, find, of_kind, overlay, pod, quantity, settings

VALUES = MANIFESTS / "overlays/autoscaling/adapter-values.yaml"
POD = 'namespace="detserve",pod="{pod}",job="triton",instance="{pod}:8002"'
STEPS = ("preprocess", "detector", "postprocess")


def rules() -> dict[str, Object]:
    """The adapter's rules, by the metric that each makes."""
    values: Any = yaml.safe_load(VALUES.read_text())
    assert values["rules"]["default"] is False
    return {rule["name"]["as"]: rule for rule in values["rules"]["custom"]}


def as_adapter(rule: Object) -> str:
    """The query that the adapter makes of a rule, for all pods of the namespace.

    Its templates are Go's with << and >>; these three variables are all that it has.
    """
    series = rule["seriesQuery"].partition("{")[0]
    query: str = rule["metricsQuery"]
    for variable, value in (
        ("Series", series),
        ("LabelMatchers", 'namespace="detserve",pod=~"a|b|idle"'),
        ("GroupBy", "pod"),
    ):
        query = query.replace(f"<<.{variable}>>", value)
    assert "<<" not in query
    return query


def test_the_autoscaler_asks_for_metrics_that_the_adapter_has() -> None:
    (autoscaler,) = of_kind(overlay("autoscaling"), "HorizontalPodAutoscaler")
    metrics = {one["pods"]["metric"]["name"] for one in autoscaler["spec"]["metrics"]}
    assert metrics == rules().keys()
    for rule in rules().values():
        # Without both labels the adapter cannot tell which pod a series is of.
        assert 'namespace!="",pod!=""' in rule["seriesQuery"]
        assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}


def test_the_autoscaler_is_quick_up_and_slow_down() -> None:
    (autoscaler,) = of_kind(overlay("autoscaling"), "HorizontalPodAutoscaler")
    spec = autoscaler["spec"]
    assert 1 < spec["minReplicas"] < spec["maxReplicas"]
    up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
    assert up["stabilizationWindowSeconds"] < down["stabilizationWindowSeconds"]
    # A pod that goes has to be drained before the next one does.
    (deployment,) = [
        item
        for item in of_kind(overlay("autoscaling"), "Deployment")
        if item["metadata"]["name"] == "triton"
    ]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    (policy,) = down["policies"]
    assert policy["value"] == 1
    assert policy["periodSeconds"] > grace


def test_queries(tmp_path: Path) -> None:
    """By promtool: pod a waits, pod b does not, and a pod that nobody asks has no wait either."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on PATH")
    # Every 10 s, a does 100 requests that waited 5, 30 and 1 ms in the steps; b waits nowhere.
    waits_us = {"preprocess": 500_000, "detector": 3_000_000, "postprocess": 100_000}
    series = []
    for name, active in (("a", 1), ("b", 1), ("idle", 0)):
        for step in STEPS:
            labels = f'model="{step}",version="1",' + POD.format(pod=name)
            wait = waits_us[step] if name == "a" else 0
            pending = "0 0 7 0x20" if (name, step) == ("a", "detector") else "0x23"
            series += [
                {
                    "series": f"nv_inference_request_success{{{labels}}}",
                    "values": f"0+{100 * active}x20",
                },
                {"series": f"nv_inference_queue_duration_us{{{labels}}}", "values": f"0+{wait}x20"},
                {"series": f"nv_inference_pending_request_count{{{labels}}}", "values": pending},
            ]
    expected = {
        "detserve_queue_milliseconds": ("2m", {"a": 36, "b": 0, "idle": 0}),
        # The 7 of 20 s are seen for as long as the autoscaler needs to look.
        "detserve_pending_requests": ("40s", {"a": 7, "b": 0, "idle": 0}),
    }
    assert expected.keys() == rules().keys()
    tests = {
        "evaluation_interval": "10s",
        "tests": [
            {
                "interval": "10s",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": as_adapter(rules()[name]),
                        "eval_time": when,
                        "exp_samples": [
                            {"labels": f'{{pod="{pod}"}}', "value": value}
                            for pod, value in values.items()
                        ],
                    }
                    for name, (when, values) in expected.items()
                ],
            }
        ],
    }
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def pending_target() -> float:
    """How many requests may wait in a pod, on average."""
    (autoscaler,) = of_kind(overlay("autoscaling"), "HorizontalPodAutoscaler")
    (target,) = [
        quantity(one["pods"]["target"]["averageValue"])
        for one in autoscaler["spec"]["metrics"]
        if one["pods"]["metric"]["name"] == "detserve_pending_requests"
    ]
    return target


def test_the_gateways_let_through_what_the_autoscaler_waits_for() -> None:
    """Else they refuse requests while every queue is short, and nothing is ever scaled."""
    objects = overlay("autoscaling")
    (autoscaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    gateways = find(objects, "Deployment", "gateway")["spec"]["replicas"]
    in_flight = gateways * int(settings(objects)["DETSERVE_MAX_IN_FLIGHT"])
    (triton,) = pod(objects, "triton").spec["containers"]
    computing = quantity(triton["resources"]["limits"]["cpu"])
    assert in_flight >= autoscaler["spec"]["maxReplicas"] * (pending_target() + computing)


def test_targets_are_below_what_the_queues_take() -> None:
    """A queue that is full refuses requests before it ever shows the autoscaler's target."""
    repository = MANIFESTS.parents[1] / "model_repository"
    configs = [path.read_text() for path in repository.glob("*/config.pbtxt")]
    limits = [
        int(limit) for text in configs for limit in re.findall(r"max_queue_size: (\d+)", text)
    ]
    assert len(configs) == 4
    assert pending_target() < min([*limits, 16]), limits
