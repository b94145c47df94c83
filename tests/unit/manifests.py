"""Renders the Kubernetes manifests, and takes what comes out apart."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
Object = dict[str, Any]

# What KServe puts on the pods that it makes of the runtime, and the service's own part of the pod.
KSERVE_LABELS = {"serving.kserve.io/inferenceservice": "detection"}


def kubectls() -> list[str]:
    """The kubectl on PATH, and those that KUBECTLS names, separated by colons."""
    others = [name for name in os.environ.get("KUBECTLS", "").split(":") if name]
    return ["kubectl", *others]


@functools.cache
def render(folder: Path, kubectl: str = "kubectl") -> tuple[Object, ...]:
    """The objects of a kustomization; the test skips where there is no kubectl."""
    program = shutil.which(kubectl)
    if program is None:
        pytest.skip(f"no {kubectl}")
    done = subprocess.run(
        [program, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def overlay(name: str, kubectl: str = "kubectl") -> tuple[Object, ...]:
    """The objects of an overlay."""
    return render(MANIFESTS / "overlays" / name, kubectl)


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    """The objects of some kinds."""
    return [item for item in objects if item["kind"] in kinds]


def find(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    """The one object of this kind and name."""
    (found,) = [item for item in of_kind(objects, kind) if item["metadata"]["name"] == name]
    return found


def settings(objects: tuple[Object, ...]) -> dict[str, str]:
    """The settings of Triton's launcher and the gateway."""
    (found,) = [item for item in of_kind(objects, "ConfigMap") if "DETSERVE_SERVER" in item["data"]]
    values: dict[str, str] = found["data"]
    return values


@dataclass(frozen=True)
class Pod:
    """What some workload makes pods of."""

    owner: str
    labels: Mapping[str, str]
    spec: Object

    def containers(self) -> list[Object]:
        """All containers, those that run first included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def ports(self) -> dict[str, int]:
        """The ports of its containers, by name."""
        return {
            port["name"]: port["containerPort"]
            for container in self.spec["containers"]
            for port in container.get("ports", [])
        }

    def volumes(self) -> dict[str, Object]:
        """Its volumes, by name."""
        return {volume["name"]: volume for volume in self.spec.get("volumes", [])}


def pods(objects: tuple[Object, ...]) -> list[Pod]:
    """The pods of every workload, those that KServe is to make included."""
    found = [
        Pod(
            f"{item['kind']}/{item['metadata']['name']}",
            item["spec"]["template"]["metadata"]["labels"],
            item["spec"]["template"]["spec"],
        )
        for item in of_kind(objects, "Deployment", "Job")
    ]
    for service in of_kind(objects, "InferenceService"):
        predictor = service["spec"]["predictor"]
        runtime = find(objects, "ServingRuntime", predictor["model"]["runtime"])
        found.append(Pod("InferenceService", KSERVE_LABELS, {**runtime["spec"], **predictor}))
    return found


def pod(objects: tuple[Object, ...], name: str) -> Pod:
    """The pod of one workload."""
    (found,) = [item for item in pods(objects) if item.owner.endswith(f"/{name}")]
    return found


def selects(selector: Object | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes something with these labels; an empty one takes everything."""
    selector = selector or {}
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions", []):
        present = labels.get(term["key"])
        if term["operator"] == "In":
            if present not in term["values"]:
                return False
        elif term["operator"] == "Exists":
            if present is None:
                return False
        else:
            raise NotImplementedError(term["operator"])
    return True


_UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: str) -> float:
    """A quantity of Kubernetes' as a number: cores, or bytes."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text)
    assert match, text
    return float(match[1]) * _UNITS[match[2]]


def walk(value: Any) -> Iterator[Object]:
    """Every mapping inside a document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)
