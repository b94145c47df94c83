"""The objects of KServe and of the Prometheus operator.

Kubernetes' own schemas do not know these kinds. Their fields here are those of KServe 0.21 (the
models of its Python package) and of the operator's API reference, as far as the manifests use
them: whatever is not listed counts as misspelt. What is part of a pod, Kubernetes' schema checks.
"""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate
import pytest

from tests.unit.manifests import Object, find, of_kind, overlay, pods

VERSIONS = ["1.27", "1.37"]
STRING: Object = {"type": "string", "minLength": 1}
WHOLE: Object = {"type": "integer", "minimum": 1}


def closed(required: list[str], **properties: Any) -> Object:
    """A mapping of these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def listed(items: Object) -> Object:
    """A list of one or more."""
    return {"type": "array", "items": items, "minItems": 1}


def whole(api: str, kind: str, spec: Object) -> Object:
    """An object of some kind."""
    metadata = closed(
        ["name", "namespace"],
        name=STRING,
        namespace=STRING,
        annotations={"type": "object", "additionalProperties": {"type": "string"}},
    )
    return closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": api},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


FORMAT = closed(["name"], name=STRING, version=STRING)
MODEL = closed(
    ["modelFormat"],
    modelFormat=FORMAT,
    protocolVersion={"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]},
    runtime=STRING,
    storageUri={"type": "string", "pattern": "^(pvc|s3|gs|https?|hf|oci)://."},
)
# KServe's part of a predictor; the other fields are a pod's.
PREDICTOR = {
    "minReplicas": {"type": "integer", "minimum": 0},
    "maxReplicas": WHOLE,
    "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
    "scaleTarget": WHOLE,
    "model": MODEL,
}
OF_POD = {"serviceAccountName", "automountServiceAccountToken", "terminationGracePeriodSeconds",
          "shareProcessNamespace"}  # fmt: skip
SERVICE = whole(
    "serving.kserve.io/v1beta1",
    "InferenceService",
    closed(["predictor"], predictor=closed(["model"], **PREDICTOR, **{key: {} for key in OF_POD})),
)
SUPPORTED = closed(["name"], name=STRING, version=STRING, autoSelect={"type": "boolean"})
RUNTIME = whole(
    "serving.kserve.io/v1alpha1",
    "ServingRuntime",
    closed(
        ["containers"],
        supportedModelFormats=listed(SUPPORTED),
        protocolVersions=listed({"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}),
        containers=listed({"type": "object"}),
        volumes=listed({"type": "object"}),
    ),
)
RELABELING = closed(
    [],
    sourceLabels=listed(STRING),
    separator=STRING,
    targetLabel=STRING,
    regex=STRING,
    replacement=STRING,
    action=STRING,
)
ENDPOINT = closed(
    ["port"],
    port=STRING,
    path={"type": "string", "pattern": "^/"},
    interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    scrapeTimeout={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    relabelings=listed(RELABELING),
    metricRelabelings=listed(RELABELING),
)
LABELS = {"type": "object", "additionalProperties": STRING, "minProperties": 1}
POD_MONITOR = whole(
    "monitoring.coreos.com/v1",
    "PodMonitor",
    closed(
        ["podMetricsEndpoints", "selector"],
        selector=closed(["matchLabels"], matchLabels=LABELS),
        podMetricsEndpoints=listed(ENDPOINT),
    ),
)


@pytest.mark.parametrize(
    ("name", "kind", "schema", "count"),
    [
        ("kserve", "InferenceService", SERVICE, 1),
        ("kserve", "ServingRuntime", RUNTIME, 1),
        ("monitoring", "PodMonitor", POD_MONITOR, 2),
    ],
)
def test_fields(name: str, kind: str, schema: Object, count: int) -> None:
    found = of_kind(overlay(name), kind)
    assert len(found) == count
    for item in found:
        jsonschema.validate(item, schema)
        wrong = {**item, "spec": {**item["spec"], "protocolVersion": "v2"}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pods_that_kserve_makes(version: str) -> None:
    objects = overlay("kserve")
    (one,) = [item for item in pods(objects) if item.owner == "InferenceService"]
    (runtime,) = of_kind(objects, "ServingRuntime")
    kserve = PREDICTOR.keys() | runtime["spec"].keys() - {"containers", "volumes"}
    spec = {key: value for key, value in one.spec.items() if key not in kserve}
    assert {"containers", "volumes", *OF_POD} == spec.keys()
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(item, version, strict=True)


def test_the_service_finds_its_runtime() -> None:
    objects = overlay("kserve")
    (service,) = of_kind(objects, "InferenceService")
    model = service["spec"]["predictor"]["model"]
    runtime = find(objects, "ServingRuntime", model["runtime"])["spec"]
    formats = [(one["name"], one["version"]) for one in runtime["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    assert model["protocolVersion"] in runtime["protocolVersions"]
    # KServe's webhook finds the container by this name, and its Service takes the first port.
    (container,) = runtime["containers"]
    assert container["name"] == "kserve-container"
    assert container["ports"][0]["containerPort"] == 8000
    claim = model["storageUri"].removeprefix("pvc://").partition("/")[0]
    assert find(objects, "PersistentVolumeClaim", claim)


def test_prometheus_finds_what_it_is_to_scrape() -> None:
    objects = overlay("monitoring")
    jobs = set()
    for monitor in of_kind(objects, "PodMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"]
        (one,) = [item for item in pods(objects) if labels.items() <= dict(item.labels).items()]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert endpoint["port"] in one.ports()
            (relabeling,) = endpoint["relabelings"]
            assert relabeling["targetLabel"] == "job"
            jobs.add((relabeling["replacement"], one.ports()[endpoint["port"]]))
    assert jobs == {("triton", 8002), ("launcher", 8003), ("gateway", 8080)}
