"""What the Kubernetes manifests expect of the programs in the containers, held against those."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from contract import DetectorInfo
from gateway.app import make_app
from gateway.settings import Settings, parse_settings
from local_server._health import HealthEndpoint
from local_server._options import parse_options, variables
from local_server._ports import DEFAULT_PORTS
from local_server._state import ServerState
from tests.models import write_detector
from tests.unit.manifests import (
    MANIFESTS,
    OVERLAYS,
    ROOT,
    Object,
    of_kind,
    overlay,
    pod,
    pods,
    settings,
)

SCRIPT = MANIFESTS / "store/build-release.sh"
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


def get(url: str) -> int:
    """The status of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


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
    limit = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert limit == settings(objects)["DETSERVE_MAX_BODY_MB"] + "m"


def test_the_plan_is_built_by_options_that_there_are() -> None:
    (container,) = [
        one for one in pod(overlay("gpu"), "model-store").containers() if one["name"] == "plan"
    ]
    model, output, *_ = container["args"]
    # Where the script of the other steps has them: $WORK/repository and $WORK/plans.
    assert model == "/detserve/build/repository/detector/1/model.onnx"
    assert output == "--output=/detserve/build/plans/model.plan"
    done = subprocess.run(
        [sys.executable, "scripts/build_plan.py", *container["args"]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # The options are understood (a wrong one is status 2), and then there is no such file here.
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")


def publish(folder: Path, *steps: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the job as its container does."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["/bin/sh", str(SCRIPT), *steps],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": path,
            "MODEL_STORE": str(folder / "models"),
            "WORK": str(folder / "work"),
            "MODEL_RELEASE": "r1",
            **more,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = write_detector(tmp_path / "model.onnx", rows=np.zeros((300, 6), np.float32))
    detector = onnx.load(path)
    DetectorInfo(input_size_wh=(96, 96), labels=("cup", "cat"), source="us").write_to(detector)
    onnx.save(detector, path)
    (tmp_path / "models").mkdir()
    (tmp_path / "work").mkdir()
    return str(path)


def test_a_release_is_published_once(model: str, tmp_path: Path) -> None:
    steps = pod(overlay("cpu"), "model-store").spec["containers"][0]["args"]
    done = publish(tmp_path, *steps, MODEL=model)
    assert done.returncode == 0, done.stderr
    release = tmp_path / "models/r1"
    assert sorted(path.name for path in release.iterdir() if path.is_dir()) == [
        "detection", "detector", "postprocess", "preprocess",
    ]  # fmt: skip
    assert (release / "detector/1/model.onnx").is_file()
    before = (release / "detector/1/model.onnx").stat().st_mtime_ns
    again = publish(tmp_path, *steps, MODEL="/missing.onnx")
    assert (again.returncode, "there already" in again.stdout) == (0, True)
    assert (release / "detector/1/model.onnx").stat().st_mtime_ns == before


def test_half_a_release_is_not_seen(model: str, tmp_path: Path) -> None:
    partial = tmp_path / "models/r1.partial"
    partial.mkdir()
    (partial / "left").touch()  # by a job that was killed
    failed = publish(tmp_path, "build", "publish", MODEL="/missing.onnx")
    assert failed.returncode != 0
    assert "/missing.onnx" in failed.stderr
    assert not (tmp_path / "models/r1").exists()
    done = publish(tmp_path, "build", "publish", MODEL=model)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["r1"]
    assert not (tmp_path / "models/r1/left").exists()


def test_a_step_that_there_is_not(tmp_path: Path) -> None:
    done = publish(tmp_path, "bild")
    assert (done.returncode, done.stderr) == (
        2,
        "error: no step bild; there are build, plan and publish\n",
    )
