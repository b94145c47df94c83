"""The commands of the images and of the compose file, run for real without an engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from detection_client import DetectionClient
from photos import jpeg
from tests.container_files import ROOT, settings
from tests.images import encode, photo
from tests.server.conftest import wait_until_clean
from tests.server.roots import add_triton, why_not
from tests.server.services import Service, free_ports, port_variables, running

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The named volumes, with the user that the images make them for."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("models", "work")}
    fetched = ROOT / "build/models/coco-ssd-tfjs"
    if fetched.is_dir():  # verified by the script; else it is fetched
        shutil.copytree(fetched, folders["work"] / "models/coco-ssd-tfjs")
    for folder in folders.values():
        subprocess.run(["chown", "-R", "1000:1000", str(folder)], check=True)
        folder.chmod(0o755)
    return folders


@pytest.fixture(scope="module")
def release(volumes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release that the service `model` has built with the tools image."""
    model = Service("model", tmp_path_factory.mktemp("model"), volumes)
    model.root.build()
    done = subprocess.run(model.command({}), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    again = subprocess.run(model.command({}), capture_output=True, text=True, timeout=60)
    assert "stays as it is" in again.stdout
    return volumes["models"] / settings()["MODEL_RELEASE"]


@pytest.fixture(scope="module")
def triton(
    release: Path, volumes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, dict[str, str]]]:
    """The service `triton`, on free ports, serving that release."""
    assert (release / "detector/1/model.onnx").stat().st_uid == 1000
    service = Service("triton", tmp_path_factory.mktemp("triton"), volumes, DETSERVE_CACHE_MB="32")
    add_triton(service.root)
    service.root.build()
    variables = port_variables()
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with running(service, log, variables) as process:
        yield service, variables
    assert "Stopped." in log.read_text()
    assert service.check(variables).returncode == 1
    wait_until_clean(process.pid)


def test_triton_serves_confined(triton: tuple[Service, dict[str, str]]) -> None:
    service, variables = triton
    assert service.check(variables).stdout.startswith("200 ")
    with DetectionClient(f"grpc://127.0.0.1:{variables['DETSERVE_GRPC_PORT']}") as client:
        assert "cat" in {found.label for found in client.detect(jpeg("chelsea"))}
    processes = confined(int(variables["DETSERVE_GRPC_PORT"]))
    assert processes


def confined(port: int) -> list[str]:
    """The processes of the Triton that listens there, once they have proven to be confined."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
            status = (folder / "status").read_text()
        except OSError:
            continue
        if f"--grpc-port={port}" in arguments:
            found.append(arguments[0])
            values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert values["Uid"].split() == ["1000"] * 4
            assert int(values["CapBnd"], 16) == int(values["CapEff"], 16) == 0
            assert values["NoNewPrivs"] == "1"
            lines = (folder / "mounts").read_text().splitlines()
            options = {line.split()[1]: line.split()[3].split(",") for line in lines}
            assert "ro" in options["/"]
            assert "ro" in options["/models"]
            assert "size=1048576k" in options["/dev/shm"]
    return found


def test_the_gateway_serves_confined(
    triton: tuple[Service, dict[str, str]], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    service = Service("gateway", make(tmp_path / "root"), {})
    service.root.build()
    keys = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # of "test"
    variables = {
        "DETSERVE_SERVER": f"grpc://127.0.0.1:{triton[1]['DETSERVE_GRPC_PORT']}",
        "DETSERVE_REDIS_URL": "",
        "DETSERVE_GATEWAY_PORT": str(port),
        "DETSERVE_API_KEYS": keys,
    }
    with running(service, tmp_path / "log", variables):
        health = service.check(variables).stdout
        assert health.startswith("200 ")
        assert json.loads(health[4:])["status"]
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(url).status_code == 200  # the page
        body = {"content": jpeg("chelsea"), "headers": {"Content-Type": "image/jpeg"}}
        assert httpx.post(f"{url}/detect", **body).status_code == 401  # type: ignore[arg-type]
        body["headers"] = {"Content-Type": "image/jpeg", "X-API-Key": "test"}
        answer = httpx.post(f"{url}/detect", **body)  # type: ignore[arg-type]
        assert "cat" in {found["label"] for found in answer.json()["detections"]}


def children(pid: int) -> list[int]:
    """The processes that a process started and has not waited for."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def test_the_first_process_of_a_container_leaves_no_zombies(
    release: Path, volumes: dict[str, Path], tmp_path: Path
) -> None:
    assert release.is_dir()
    service = Service("triton", make(tmp_path / "root"), volumes)
    add_triton(service.root)
    service.root.build()
    variables = port_variables()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(service.command(variables, first=True), stdout=log)

    def wait_for(happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not happened():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)

    def healthy() -> bool:
        return service.check(variables).returncode == 0

    try:
        wait_for(healthy)
        (first,) = children(process.pid)
        (launcher,) = children(first)
        (triton,) = [pid for pid in children(launcher) if len(children(pid)) > 1]
        models = children(triton)
        assert len(models) == 6
        os.kill(triton, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in [triton, *models]))
        wait_for(healthy)
        assert children(first) == [launcher]
        os.kill(first, signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Stopped." in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


ENTRY_POINT = """#!/bin/sh
# What the entry point of nginx's image does with what is mounted for it.
set -e
for file in /docker-entrypoint.d/*.envsh; do . "$file"; done
names=$(env | cut -d= -f1 | grep -E "$NGINX_ENVSUBST_FILTER" | sed 's/.*/${&}/')
for file in /etc/nginx/templates/*.template; do
    name=${file##*/}
    envsubst "$names" < "$file" > "$NGINX_ENVSUBST_OUTPUT_DIR/${name%.template}"
done
exec "$@"
"""


def test_the_balancer_passes_requests_confined(
    triton: tuple[Service, dict[str, str]], tmp_path: Path
) -> None:
    for program in ("nginx", "envsubst", "wget"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on PATH")
    folder = make(tmp_path / "root")
    (written := tmp_path / "balancer").mkdir()
    os.chown(written, 101, 101)  # as the volume's options say
    service = Service("balancer", folder, {"balancer": written})
    (folder / "docker-entrypoint.sh").write_text(ENTRY_POINT)
    (folder / "docker-entrypoint.sh").chmod(0o755)
    service.root.base_environment["PATH"] += ":/usr/sbin:/sbin"
    http, grpc, status = map(str, free_ports(3))
    service.image.healthcheck[-1] = service.image.healthcheck[-1].replace(":8090/", f":{status}/")
    server = [triton[1][f"DETSERVE_{name}_PORT"] for name in ("HTTP", "GRPC", "HEALTH")]
    variables = {
        "BALANCER_TRITONS": ":".join(["127.0.0.1", *server]),
        "BALANCER_HTTP_PORT": http,
        "BALANCER_GRPC_PORT": grpc,
        "BALANCER_STATUS_PORT": status,
        "BALANCER_ACCESS_LOG": "/tmp/balancer/access.log",
    }
    with running(service, tmp_path / "log", variables):
        # Over 1 MB: over HTTP it is kept in a file on its way.
        large = encode(photo("chelsea").resize((1200, 800)), "BMP")
        for url in (f"grpc://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}"):
            with DetectionClient(url) as client:
                for image in (jpeg("chelsea"), large):
                    assert "cat" in {found.label for found in client.detect(image)}
        closed = httpx.post(f"http://127.0.0.1:{http}/v2/repository/models/detector/unload")
        assert closed.status_code == 403


def test_the_gateway_is_unhealthy_without_a_server(tmp_path: Path) -> None:
    port, nobody = free_ports(2)
    service = Service("gateway", make(tmp_path / "root"), {})
    variables = {
        "DETSERVE_SERVER": f"grpc://127.0.0.1:{nobody}",
        "DETSERVE_REDIS_URL": "",
        "DETSERVE_GATEWAY_PORT": str(port),
    }
    process = subprocess.Popen(
        service.command(variables), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while not (checked := service.check(variables)).stdout.startswith("503 "):
            assert checked.returncode == 1
            assert process.poll() is None
            assert time.monotonic() < deadline, checked.stdout
        assert checked.returncode == 1
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_wrong_setting_ends_the_container(volumes: dict[str, Path], tmp_path: Path) -> None:
    service = Service("triton", tmp_path, volumes, DETSERVE_CACHE_MB="plenty")
    add_triton(service.root)
    done = subprocess.run(service.command({}), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "variable DETSERVE_CACHE_MB: a number from 0 up is wanted" in done.stderr
