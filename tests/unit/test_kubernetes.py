"""The Kubernetes manifests: rendered, held against Kubernetes' schemas, and against each other."""

from __future__ import annotations

import json
import operator
import re
import shutil
from pathlib import Path

import kubernetes_validate
import pytest

from tests.unit.manifests import (
    MANIFESTS,
    OVERLAYS,
    Object,
    find,
    kubectls,
    of_kind,
    overlay,
    pod,
    pods,
    quantity,
    render,
    selects,
    settings,
    walk,
)

VERSIONS = ["1.27", "1.32", "1.37"]
CUSTOM = {"ServingRuntime", "InferenceService", "PodMonitor"}  # test_kubernetes_custom.py
# What an operator makes by hand (docs/kubernetes.md), and when it is needed.
EXTERNAL_SECRETS = {"gateway-api-keys", "redis", "gateway-tls"}

each_overlay = pytest.mark.parametrize("name", OVERLAYS)
with_servers = pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "kserve"])


def test_overlays_are_there() -> None:
    assert OVERLAYS == ["autoscaling", "cpu", "gpu", "kserve", "monitoring"]


@pytest.mark.parametrize("kubectl", kubectls())
@each_overlay
def test_every_kubectl_renders_the_same(name: str, kubectl: str) -> None:
    def comparable(objects: tuple[Object, ...]) -> dict[str, Object]:
        # Versions differ in the hash at the end of a ConfigMap's name, and in the order
        # of a patched list of volumes.
        text = re.sub(r'("[a-z-]+)-[a-z0-9]{10}"', r'\1-HASH"', json.dumps(objects))
        items = {f"{item['kind']}/{item['metadata']['name']}": item for item in json.loads(text)}
        for part in walk(list(items.values())):
            for empty in [key for key in ("annotations", "labels") if part.get(key) == {}]:
                del part[empty]
            if isinstance(part.get("volumes"), list):
                part["volumes"].sort(key=operator.itemgetter("name"))
        return items

    assert comparable(overlay(name, kubectl)) == comparable(overlay(name))


@pytest.mark.parametrize("version", VERSIONS)
@each_overlay
def test_schema(name: str, version: str) -> None:
    checked = [item for item in overlay(name) if item["kind"] not in CUSTOM]
    for item in checked:
        kubernetes_validate.validate(item, version, strict=True)
    assert len(checked) >= 10


def test_the_schema_finds_a_misspelt_field() -> None:
    item = find(overlay("cpu"), "Deployment", "triton")
    wrong = {**item, "spec": {**item["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@each_overlay
def test_everything_is_in_the_namespace_once(name: str) -> None:
    objects = overlay(name)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(names) == len(set(names))
    for item in objects:
        assert item["kind"] == "Namespace" or item["metadata"]["namespace"] == "detserve"


@each_overlay
def test_selectors_find_their_pods(name: str) -> None:
    objects = overlay(name)
    every = pods(objects)
    for item in of_kind(objects, "Deployment"):
        spec = item["spec"]
        assert selects(spec["selector"], spec["template"]["metadata"]["labels"])
        matching = [one for one in every if selects(spec["selector"], one.labels)]
        assert len(matching) == 1, "another workload has the same labels"
        for constraint in spec["template"]["spec"].get("topologySpreadConstraints", []):
            assert constraint["labelSelector"] == spec["selector"]
    for item in of_kind(objects, "PodDisruptionBudget", "NetworkPolicy"):
        selector = item["spec"].get("selector") or item["spec"].get("podSelector")
        assert any(selects(selector, one.labels) for one in every), item["metadata"]["name"]


@with_servers
def test_services_lead_to_ports(name: str) -> None:
    objects = overlay(name)
    for service in of_kind(objects, "Service"):
        (behind,) = [
            one
            for one in pods(objects)
            if selects({"matchLabels": service["spec"]["selector"]}, one.labels)
        ]
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in behind.ports()
            if service["spec"].get("clusterIP") == "None":  # no translation: the port is the pod's
                assert port["port"] == behind.ports()[port["targetPort"]]
    names = {item["metadata"]["name"]: item for item in of_kind(objects, "Service")}
    for ingress in of_kind(objects, "Ingress"):
        for path in ingress["spec"]["rules"][0]["http"]["paths"]:
            backend = path["backend"]["service"]
            ports = names[backend["name"]]["spec"]["ports"]
            assert backend["port"]["name"] in [port["name"] for port in ports]


def test_grpc_is_balanced_by_its_clients() -> None:
    objects = overlay("cpu")
    for service in of_kind(objects, "Service"):
        if service["spec"].get("clusterIP") != "None":
            assert "grpc" not in [port["name"] for port in service["spec"]["ports"]]
    service = find(objects, "Service", "triton-grpc")
    (port,) = service["spec"]["ports"]
    assert settings(objects)["DETSERVE_SERVER"] == f"grpc://triton-grpc:{port['port']}"


@each_overlay
def test_references_exist(name: str) -> None:
    objects = overlay(name)
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    references = []
    for one in pods(objects):
        references.append(("ServiceAccount", one.spec["serviceAccountName"]))
        for volume in one.volumes().values():
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                references.append(("PersistentVolumeClaim", claim))
            if "secret" in volume:
                assert volume["secret"]["secretName"] in EXTERNAL_SECRETS
            if "configMap" in volume:
                references.append(("ConfigMap", volume["configMap"]["name"]))
        for container in one.containers():
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= one.volumes().keys()
        for part in walk(one.spec):
            if "configMapRef" in part:
                references.append(("ConfigMap", part["configMapRef"]["name"]))
            if "secretKeyRef" in part:
                assert part["secretKeyRef"]["name"] in EXTERNAL_SECRETS
    for item in of_kind(objects, "HorizontalPodAutoscaler"):
        target = item["spec"]["scaleTargetRef"]
        references.append((target["kind"], target["name"]))
    for item in of_kind(objects, "Ingress"):
        assert {tls["secretName"] for tls in item["spec"]["tls"]} <= EXTERNAL_SECRETS
    assert set(references) <= names
    assert not of_kind(objects, "Secret"), "a secret's value is in a file"
    used = {kind_and_name for kind_and_name in references if kind_and_name[0] == "ConfigMap"}
    assert used == {key for key in names if key[0] == "ConfigMap"}, "one is not used"


@with_servers
def test_updates_and_disruptions_leave_a_server(name: str) -> None:
    objects = overlay(name)
    budgets = {
        item["metadata"]["name"]: item["spec"] for item in of_kind(objects, "PodDisruptionBudget")
    }
    scaled = {
        item["spec"]["scaleTargetRef"]["name"]: item["spec"]
        for item in of_kind(objects, "HorizontalPodAutoscaler")
    }
    for server in ("triton", "gateway"):
        spec = find(objects, "Deployment", server)["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        if server in scaled:
            assert "replicas" not in spec, "kubectl apply would undo the autoscaler's work"
            replicas = scaled[server]["minReplicas"]
        else:
            replicas = spec["replicas"]
        assert replicas - budgets[server]["maxUnavailable"] >= 1
        assert budgets[server]["maxUnavailable"] >= 1, "no node could ever be drained"


def test_gpu() -> None:
    objects = overlay("gpu")
    triton, job = pod(objects, "triton"), pod(objects, "model-store")
    for one in (triton, job):
        assert one.spec["nodeSelector"] == triton.spec["nodeSelector"]
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in one.spec[
            "tolerations"
        ]
    with_gpu = [
        container["name"]
        for one in pods(objects)
        for container in one.containers()
        if "nvidia.com/gpu" in container["resources"]["limits"]
    ]
    assert with_gpu == ["plan", "triton"] or with_gpu == ["triton", "plan"]
    assert [container["name"] for container in job.containers()] == ["build", "plan", "publish"]
    of_cpu = pod(overlay("cpu"), "triton")
    size = [one.volumes()["shm"]["emptyDir"]["sizeLimit"] for one in (of_cpu, triton)]
    assert quantity(size[0]) < quantity(size[1])


@pytest.mark.parametrize("name", ["autoscaling", "monitoring"])
def test_overlays_go_with_gpus(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "kubernetes"
    shutil.copytree(MANIFESTS, copy)
    file = copy / "overlays" / name / "kustomization.yaml"
    text = file.read_text()
    assert "- ../cpu\n" in text
    file.write_text(text.replace("- ../cpu\n", "- ../gpu\n"))
    objects = render(file.parent)
    (container,) = pod(objects, "triton").spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
