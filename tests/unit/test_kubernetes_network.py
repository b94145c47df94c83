"""Who may talk to whom in the cluster: the network policies, evaluated by Kubernetes' rules."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from tests.unit.manifests import (
    KSERVE_LABELS,
    OVERLAYS,
    Object,
    of_kind,
    overlay,
    pods,
    selects,
)

OURS = "detserve"


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod of some namespace, or an address outside the cluster."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


def ours(name: str) -> Peer:
    """A pod of this project."""
    return Peer(OURS, {"app.kubernetes.io/name": name})


TRITON, GATEWAY, REDIS, STORE = (
    ours(name) for name in ("triton", "gateway", "redis", "model-store")
)
STRANGER = Peer(OURS, {"app.kubernetes.io/name": "stranger"})
UNLABELLED = Peer(OURS)
PROMETHEUS = Peer("monitoring", {"app.kubernetes.io/name": "prometheus"})
GRAFANA = Peer("monitoring", {"app.kubernetes.io/name": "grafana"})
IMPOSTOR = Peer("default", {"app.kubernetes.io/name": "gateway"})  # right label, wrong namespace
FALSE_PROMETHEUS = Peer("default", {"app.kubernetes.io/name": "prometheus"})
INGRESS = Peer("traefik", {"app.kubernetes.io/name": "traefik"})
DNS = Peer("kube-system", {"k8s-app": "kube-dns"})
REGISTRY = Peer(address="203.0.113.7")
METADATA = Peer(address="169.254.169.254")
PREDICTOR = Peer(OURS, KSERVE_LABELS)


def _is_peer(term: Object, peer: Peer) -> bool:
    if "ipBlock" in term:
        if not peer.address:
            return False
        address = ipaddress.ip_address(peer.address)
        block = term["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(excepted) for excepted in block.get("except", [])
        )
    if peer.address:
        return False
    if "namespaceSelector" in term:
        # The label that every namespace has by itself, and that nobody can give to another one.
        if not selects(term["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}):
            return False
    elif peer.namespace != OURS:
        return False
    return selects(term.get("podSelector"), peer.labels)


def _is_port(term: Object, port: int, protocol: str, named: Mapping[str, int]) -> bool:
    number = named.get(term["port"]) if isinstance(term["port"], str) else term["port"]
    return bool(number == port and term.get("protocol", "TCP") == protocol)


def allowed(name: str, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies at both ends let a connection through."""
    objects = overlay(name)
    # The target's ports by their names; a pod that no manifest describes has none.
    named: dict[str, int] = {}
    if target.namespace == OURS:
        for one in pods(objects):
            if one.labels.items() >= target.labels.items() > set():
                named = one.ports()

    def passes(direction: str, here: Peer, there: Peer) -> bool:
        if here.namespace != OURS:
            return True  # not ours to say
        chosen = [
            policy["spec"]
            for policy in of_kind(objects, "NetworkPolicy")
            if direction in policy["spec"]["policyTypes"]
            and selects(policy["spec"]["podSelector"], here.labels)
        ]
        return not chosen or any(
            _matches(rule.get("from" if direction == "Ingress" else "to"), rule, there)
            for spec in chosen
            for rule in spec.get(direction.lower(), [])
        )

    def _matches(peers: list[Object] | None, rule: Object, there: Peer) -> bool:
        ports = rule.get("ports")
        return (not peers or any(_is_peer(term, there) for term in peers)) and (
            not ports or any(_is_port(term, port, protocol, named) for term in ports)
        )

    return passes("Egress", source, target) and passes("Ingress", target, source)


WANTED = [
    (INGRESS, GATEWAY, 8080),
    (GATEWAY, TRITON, 8000),
    (GATEWAY, TRITON, 8001),
    (GATEWAY, REDIS, 6379),
    (PROMETHEUS, TRITON, 8002),
    (PROMETHEUS, TRITON, 8003),
    (PROMETHEUS, GATEWAY, 8080),
    (GATEWAY, DNS, 53),
    (STORE, DNS, 53),
    (STORE, REGISTRY, 443),
]
EVERYBODY = [
    TRITON, GATEWAY, REDIS, STORE, STRANGER, UNLABELLED, PROMETHEUS, GRAFANA, IMPOSTOR,
    FALSE_PROMETHEUS, INGRESS, DNS, REGISTRY, METADATA,
]  # fmt: skip
PORTS = [53, 80, 443, 6379, 8000, 8001, 8002, 8003, 8080]


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "kserve"])
def test_precisely_what_is_wanted_is_allowed(name: str) -> None:
    ends = [peer for peer in EVERYBODY if peer.namespace == OURS]
    found = {
        (id(source), id(target), port)
        for source in EVERYBODY
        for target in EVERYBODY
        if source is not target and (source in ends or target in ends)
        for port in PORTS
        if allowed(name, source, target, port)
    }
    assert found == {(id(source), id(target), port) for source, target, port in WANTED}


def test_dns_over_udp() -> None:
    assert allowed("cpu", GATEWAY, DNS, 53, "UDP")
    assert not allowed("cpu", TRITON, DNS, 53, "UDP")
    assert not allowed("cpu", GATEWAY, REGISTRY, 53, "UDP")


def test_kserve() -> None:
    wanted = [
        (INGRESS, 8000), (INGRESS, 8001), (PROMETHEUS, 8002), (PROMETHEUS, 8003),
    ]  # fmt: skip
    found = [
        (source, port)
        for source in (INGRESS, PROMETHEUS, STRANGER, IMPOSTOR, GRAFANA)
        for port in PORTS
        if allowed("kserve", source, PREDICTOR, port)
    ]
    assert found == wanted
    assert not any(allowed("kserve", PREDICTOR, REGISTRY, port) for port in PORTS)


def test_an_overlay_without_its_policies_is_found() -> None:
    """The evaluation can say yes: a pod that no policy chooses is open."""
    assert not allowed("cpu", UNLABELLED, TRITON, 8001)
    without = tuple(item for item in overlay("cpu") if item["kind"] != "NetworkPolicy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.unit.test_kubernetes_network.overlay", lambda _: without)
        assert allowed("cpu", UNLABELLED, TRITON, 8001)
