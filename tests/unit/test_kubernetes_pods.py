"""The pods of the Kubernetes manifests: what they may do, what they get, how they start and end."""

from __future__ import annotations

import re

import pytest

from detserve import __version__
from local_server._options import parse_options
from tests.unit.manifests import OVERLAYS, Pod, overlay, pod, pods, quantity, settings

CLUSTER_DNS_TTL = 5  # in seconds, CoreDNS's default for Services
UNLOAD_AND_KILL = 5 + 10  # the launcher's, after the requests (local_server/_process.py)

each_overlay = pytest.mark.parametrize("name", OVERLAYS)


@each_overlay
def test_containers_are_confined(name: str) -> None:
    for one in pods(overlay(name)):
        assert one.spec["automountServiceAccountToken"] is False
        for container in one.containers():
            context = {**one.spec.get("securityContext", {}), **container["securityContext"]}
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] > 0
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            image, _, tag = container["image"].rpartition(":")
            if image in ("detserve-triton", "detserve-gateway", "detserve-tools"):
                assert tag == __version__
            else:
                assert re.match(r"\d+\.\d+", tag), f"{container['image']} has no version"


@each_overlay
def test_resources(name: str) -> None:
    for one in pods(overlay(name)):
        shared = sum(
            quantity(volume["emptyDir"]["sizeLimit"])
            for volume in one.volumes().values()
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        )
        for container in one.containers():
            requests, limits = (container["resources"][key] for key in ("requests", "limits"))
            assert {"cpu", "memory"} <= limits.keys() == requests.keys()
            for what, limit in limits.items():
                assert 0 < quantity(requests[what]) <= quantity(limit)
            assert requests["memory"] == limits["memory"], "memory cannot be taken back"
        # Memory-backed volumes count towards the limit of the container that fills them.
        for container in one.spec["containers"]:
            if shared:
                memory = quantity(container["resources"]["limits"]["memory"])
                assert memory >= shared + 2 * 2**30


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "kserve"])
def test_the_gateway_has_memory_for_its_bodies(name: str) -> None:
    objects = overlay(name)
    values = settings(objects)
    reading = int(values["DETSERVE_MAX_READING"])
    assert reading > int(values["DETSERVE_MAX_IN_FLIGHT"]), "requests could not wait at all"
    bodies = reading * int(values["DETSERVE_MAX_BODY_MB"])
    (gateway,) = pod(objects, "gateway").spec["containers"]
    assert quantity(gateway["resources"]["limits"]["memory"]) >= bodies * 1e6 + 200 * 2**20


@each_overlay
def test_triton_has_shared_memory_and_what_it_writes_to(name: str) -> None:
    (triton,) = [
        one for one in pods(overlay(name)) if one.owner in ("Deployment/triton", "InferenceService")
    ]
    (container,) = triton.spec["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert triton.volumes()[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert "emptyDir" in triton.volumes()[mounts["/tmp"]["name"]]  # local_server, Python backend
    writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert writable == {"/dev/shm", "/tmp"}


@each_overlay
def test_probes_point_to_ports(name: str) -> None:
    for one in pods(overlay(name)):
        ports = one.ports()
        for container in one.spec["containers"]:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                for action in (probe.get("httpGet"), probe.get("tcpSocket")):
                    if action:
                        assert action["port"] in ports or action["port"] in ports.values()
            if not one.owner.startswith("Job/"):
                assert {"readinessProbe", "livenessProbe"} <= container.keys(), one.owner


def _seconds_to_stop(one: Pod) -> int:
    (container,) = one.spec["containers"]
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    return int(seconds)


@each_overlay
def test_there_is_time_to_drain(name: str) -> None:
    objects = overlay(name)
    if name == "kserve":
        needed = {"InferenceService": 10 + UNLOAD_AND_KILL}  # the launcher's default
    else:
        values = settings(objects)
        needed = {
            "Deployment/triton": int(values["DETSERVE_DRAIN_TIMEOUT"]) + UNLOAD_AND_KILL,
            "Deployment/gateway": int(values["DETSERVE_GRACE"]),
        }
    drained = [one for one in pods(objects) if one.owner in needed]
    for one in drained:
        wanted = _seconds_to_stop(one) + needed[one.owner]
        assert one.spec["terminationGracePeriodSeconds"] >= wanted + 5
        assert _seconds_to_stop(one) >= 10  # until every node has heard that the endpoint is gone
    assert len(drained) == (1 if name == "kserve" else 2)


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "kserve"])
def test_grpc_clients_have_left_before_a_pod_ends(name: str) -> None:
    triton = pod(overlay(name), "triton")
    (container,) = triton.spec["containers"]
    arguments = parse_options(container["args"], {}).triton
    options = dict(argument.removeprefix("--").split("=") for argument in arguments)
    age = int(options["grpc-max-connection-age"]) / 1000
    grace = int(options["grpc-max-connection-age-grace"]) / 1000
    # gRPC spreads the age by a tenth, and resolves a name again after 30 s at the earliest.
    assert _seconds_to_stop(triton) >= 1.1 * age + 30 + CLUSTER_DNS_TTL
    assert grace > float(settings(overlay(name))["DETSERVE_TIMEOUT"]), "a request would be cut off"
