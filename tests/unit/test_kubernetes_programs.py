"""What the Kubernetes manifests expect of the programs in the containers, held against those."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from gateway.app import make_app
from gateway.settings import Settings, parse_settings
from local_server._health import HealthEndpoint
from local_server._options import parse_options, variables
from local_server._ports import DEFAULT_PORTS
from local_server._state import ServerState
from tests.unit.manifests import (
    MANIFESTS,
    OVERLAYS,
    ROOT,
    Object,
    kubectls,
    of_kind,
    overlay,
    pod,
    pods,
    quantity,
    render,
    settings,
)

NOT_PUBLIC = {"/metrics", "/livez", "/readyz"}


def triton_container(name: str) -> Object:
    """Triton's container in an overlay."""
    (found,) = [
        one.spec["containers"][0]
        for one in pods(overlay(name))
        if one.owner in ("Deployment/triton", "InferenceService")
    ]
    container: Object = found
    return container


def environment(name: str) -> dict[str, str]:
    """The variables of Triton's container that a ConfigMap has."""
    return {} if name == "kserve" else settings(overlay(name))


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_launcher_knows_its_options(name: str) -> None:
    container = triton_container(name)
    options = parse_options(container["args"], environment(name))
    assert options.host == "0.0.0.0"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for endpoint in DEFAULT_PORTS:  # the first of KServe's is named after its protocol
        assert getattr(options, f"{endpoint}_port") in (ports.get(endpoint), ports.get("http1"))
    assert all(argument.startswith("--grpc-") for argument in options.triton)
    assert not options.allow_model_control
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    folder = str(options.model_repository)
    assert folder == ("/mnt/models" if name == "kserve" else "/models/$(MODEL_RELEASE)")
    assert name == "kserve" or "/models" in mounts
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] > options.startup_timeout


def test_kserve_serves_the_release_that_is_built() -> None:
    objects = overlay("kserve")
    (release,) = [
        item["data"]["MODEL_RELEASE"]
        for item in of_kind(objects, "ConfigMap")
        if "MODEL_RELEASE" in item["data"]
    ]
    (service,) = of_kind(objects, "InferenceService")
    assert service["spec"]["predictor"]["model"]["storageUri"] == f"pvc://models/{release}"


def test_every_setting_is_known() -> None:
    values = settings(overlay("cpu"))
    of_gateway = {
        "DETSERVE_" + ("GATEWAY_" if field.name in ("host", "port") else "") + field.name.upper()
        for field in fields(Settings)
    }
    assert values.keys() <= variables().keys() | of_gateway
    parsed = parse_settings([], values)
    ports = pod(overlay("cpu"), "gateway").ports()
    assert (parsed.host, parsed.port) == ("0.0.0.0", ports["http"])


def test_one_list_of_settings() -> None:
    """The two lists have to say the same: kustomize reads no file above its own folder."""
    lines = (ROOT / "deploy/settings.env").read_text().splitlines()
    shared = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    objects = overlay("cpu")
    # The address of the server is no setting of compose's: its file has it.
    assert settings(objects).keys() - {"DETSERVE_SERVER"} <= shared.keys()
    (triton,) = pod(objects, "triton").spec["containers"]
    (gateway,) = pod(objects, "gateway").spec["containers"]
    shm = pod(objects, "triton").volumes()["shm"]["emptyDir"]["sizeLimit"]
    sizes = {
        "TRITON_MEMORY": triton["resources"]["limits"]["memory"],
        "TRITON_SHM": shm,
        "GATEWAY_MEMORY": gateway["resources"]["limits"]["memory"],
    }
    for name, size in sizes.items():
        assert quantity(size) == quantity(shared[name].upper() + "i")
    (plan,) = [
        one for one in pod(overlay("gpu"), "model-store").containers() if one["name"] == "plan"
    ]
    assert plan["image"] == f"detserve-plan:{shared['NVIDIA_TAG']}"
    releases = [
        item["data"]["MODEL_RELEASE"]
        for name in ("cpu", "gpu")
        for item in of_kind(overlay(name), "ConfigMap")
        if "MODEL_RELEASE" in item["data"]
    ]
    assert releases == [shared["MODEL_RELEASE"], shared["MODEL_RELEASE"] + "-gpu"]


def test_redis_starts_with_its_password(tmp_path: Path) -> None:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on PATH")
    (container,) = pod(overlay("cpu"), "redis").spec["containers"]
    assert container["command"] == ["redis-server"]
    replaced = {"$(REDIS_PASSWORD)": "secret", "/tmp": str(tmp_path)}
    options = [replaced.get(option, option) for option in container["args"]]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = subprocess.Popen(
        [program, *options, "--port", str(port), "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL
    )
    try:
        url = f"redis://:secret@127.0.0.1:{port}/0"
        deadline = time.monotonic() + 20
        with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 200)) as client:
            while client.ping() is not True:
                assert time.monotonic() < deadline
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
            assert client.config_get("save") == {"save": ""}
        with redis.Redis(port=port) as anybody, pytest.raises(redis.AuthenticationError):
            anybody.ping()
    finally:
        server.terminate()
        server.wait(10)


def get(url: str) -> int:
    """The status of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def fail() -> None:
    raise RuntimeError


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_of_the_launcher(name: str) -> None:
    """A model that is being healed takes the pod out of the Service, and does not restart it."""
    container = triton_container(name)
    state = ServerState()
    state.server_up()
    state.answered("detector", 0.01)
    endpoint = HealthEndpoint("127.0.0.1", 0, state.snapshot)
    base = f"http://127.0.0.1:{endpoint._server.server_address[1]}"

    def answers() -> dict[str, int]:
        return {
            kind: get(base + container[kind]["httpGet"]["path"])
            for kind in ("startupProbe", "readinessProbe", "livenessProbe")
        }

    try:
        assert set(answers().values()) == {200}
        state.failing("detector", "no answer within 4 s", "reloading it")
        assert answers() == {"startupProbe": 503, "readinessProbe": 503, "livenessProbe": 200}
        with pytest.raises(RuntimeError):
            state.guard(fail)
        assert set(answers().values()) == {503}  # nobody heals any more
    finally:
        endpoint.close()


def routes() -> dict[str, str]:
    """The paths of the gateway, each with the kind of its route."""
    app: Any = make_app(Settings())._app
    return {route.path: type(route).__name__ for route in app.routes}


def test_probes_and_ingress_of_the_gateway() -> None:
    objects = overlay("cpu")
    known = routes()
    (container,) = pod(objects, "gateway").spec["containers"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["httpGet"]["path"] in known
    (ingress,) = of_kind(objects, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    public = {path["path"]: path["pathType"] for path in rule["http"]["paths"]}
    kinds = {path: "Prefix" if kind == "Mount" else "Exact" for path, kind in known.items()}
    assert public == {path: kind for path, kind in kinds.items() if path not in NOT_PUBLIC}
    assert known.keys() >= NOT_PUBLIC


@pytest.mark.parametrize("kubectl", kubectls())
def test_the_folder_in_the_documentation(kubectl: str, tmp_path: Path) -> None:
    text = (ROOT / "docs/kubernetes.md").read_text()
    (tmp_path / "detserve/deploy").mkdir(parents=True)
    shutil.copytree(MANIFESTS, tmp_path / "detserve/deploy/kubernetes")
    (tmp_path / "site").mkdir()
    files = re.findall(r"```yaml\n# (site/\S+)\n(.*?)```", text, flags=re.DOTALL)
    assert [name for name, _ in files] == ["site/kustomization.yaml", "site/host.yaml"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    objects = render(tmp_path / "site", kubectl)
    for one in pods(objects):
        for container in one.containers():
            ours = container["image"].startswith("registry.example.com/detserve-")
            assert ours or one.owner == "Deployment/redis"
    assert settings(objects)["DETSERVE_CACHE_MB"] == "256"
    assert settings(objects)["DETSERVE_HOST"] == "0.0.0.0"
    (ingress,) = of_kind(objects, "Ingress")
    assert ingress["spec"]["rules"][0]["host"] == "detect.example.org"
    assert ingress["spec"]["tls"][0]["hosts"] == ["detect.example.org"]
