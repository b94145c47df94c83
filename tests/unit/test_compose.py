"""The compose files and their settings: what can be read of them without an engine."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detection_client._address import parse_addresses
from detserve.repository import read_model_config
from gateway.settings import parse_settings
from local_server._options import variables
from tests.container_files import ROOT, compose, image, mounts, settings

COMPOSE_FILES = [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy/docker").glob("*.yml"))]
SERVICES: dict[str, Any] = compose()["services"]
OURS = {name: s for name, s in SERVICES.items() if s["image"].startswith("detserve-")}
ONE_SHOTS = {"model", "model-onnx", "model-plan", "model-gpu", "tools", "plan", "loadtest"}
# Variables that may not be in settings.env: secrets, and what is said for one run.
FOR_ONE_RUN = {"DETSERVE_API_KEYS", "MODEL", "NPM_CONFIG_REGISTRY"}


def run(program: str, *arguments: str) -> None:
    """Run a linter of the development environment; it must find nothing."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def gateway_variables() -> set[str]:
    """The variables that the gateway reads, from its own help."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "--help"],
        cwd=ROOT / "clients",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(re.findall(r"\[(DETSERVE_\w+)\]", re.sub(r"\s+", "", done.stdout)))


def test_the_compose_files_follow_the_specification() -> None:
    run(
        "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        *map(str, COMPOSE_FILES),
    )


def test_yaml_is_clean() -> None:
    run("yamllint", "--strict", "docker-compose.yml", "deploy/docker")


def test_images_are_built_here_or_pinned() -> None:
    for name, service in SERVICES.items():
        if name in OURS:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        else:
            assert re.search(r":v?\d+\.\d+\.\d+[\w.-]*$", service["image"]), name


def test_the_same_nvidia_release_everywhere() -> None:
    release = settings()["NVIDIA_TAG"]
    for name in ("triton", "plan"):
        text = (ROOT / f"deploy/docker/{name}.Dockerfile").read_text()
        assert f"ARG NVIDIA_TAG={release}\n" in text
    for service in OURS.values():
        args = service["build"].get("args", {})
        assert args.get("NVIDIA_TAG", release) == release


def test_what_is_mounted_exists() -> None:
    volumes = compose()["volumes"]
    for name, service in SERVICES.items():
        for source, _, options in mounts(service):
            if source.startswith("./") and source != "./build":
                assert (ROOT / source).exists(), f"{name}: {source}"
                assert "ro" in options or name == "plan"
                if source.endswith(".envsh"):  # else nginx's entrypoint passes it over
                    assert (ROOT / source).stat().st_mode & stat.S_IXUSR
            else:
                assert source in volumes or source in ("./build", "/")
        for path in service.get("env_file", []):
            assert (ROOT / path).is_file()


def test_variables_are_those_that_the_programs_know() -> None:
    launcher, gateway = set(variables()), gateway_variables()
    assert gateway >= {"DETSERVE_SERVER", "DETSERVE_GRACE"}
    for name, service in OURS.items():
        known = {"triton": launcher, "gateway": gateway}.get(name.partition("-")[0], set())
        given = {variable for variable in service["environment"] if variable[:4] == "DETS"}
        assert given <= known, name
    ours = {name for name in settings() if name.startswith("DETSERVE_")}
    assert ours <= launcher | gateway


def test_settings_are_used_and_are_all_there() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    used |= set(re.findall(r"^ +([A-Z][A-Z_]+):(?: +#.*)?$", text, re.M))  # null: passed on
    listed = set(settings())
    assert used - FOR_ONE_RUN <= listed
    assert listed - used == {"COMPOSE_PROFILES"}
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        value = settings()[name]
        assert value in ("", default) or default == "", name


def test_defaults_of_the_settings_are_those_of_the_programs() -> None:
    ours = {name: value for name, value in settings().items() if name.startswith("DETSERVE_")}
    fewer = {"DETSERVE_MAX_READING": ours["DETSERVE_MAX_READING"]}  # for less memory
    assert parse_settings([], ours) == parse_settings([], fewer)
    assert (ROOT / ".env").readlink() == Path("deploy/settings.env")  # which compose reads


def test_profiles() -> None:
    def started(*profiles: str) -> set[str]:
        return {
            name
            for name, service in SERVICES.items()
            if not service.get("profiles") or set(profiles) & set(service["profiles"])
        }

    assert started(settings()["COMPOSE_PROFILES"]) == {"gateway", "redis", "model", "triton"}
    gpu = {"gateway", "redis", "model-onnx", "model-plan", "model-gpu", "triton-gpu"}
    assert started("gpu") == gpu
    scale = {"gateway", "redis", "model", "triton-1", "triton-2", "triton-3", "balancer"}
    assert started("scale") == scale | {"balancer-checks"}
    monitoring = {"prometheus", "grafana", "node-exporter"}
    assert started("gpu", "monitoring") == gpu | monitoring
    for profile in ("cpu", "gpu", "scale"):
        names = started(profile, "monitoring")
        published = [p.rsplit(":", 1)[0] for n in names for p in SERVICES[n].get("ports", [])]
        assert len(published) == len(set(published))
        servers = [n for n in names if "server" in aliases(SERVICES[n], "serving")]
        assert len(servers) == 1  # whom the gateway asks
        for name in names:
            for other, how in SERVICES[name].get("depends_on", {}).items():
                assert other in names or how.get("required") is False, f"{name}: {other}"


def aliases(service: dict[str, Any], network: str) -> list[str]:
    networks = service.get("networks")
    found = (networks.get(network) or {}) if isinstance(networks, dict) else {}
    return list(found.get("aliases", []))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == ("no" if name in ONE_SHOTS else "unless-stopped")
    assert service["logging"]["options"]["max-size"]
    assert service["mem_limit"]
    assert service["pids_limit"] > 0
    if name not in OURS and name not in ("grafana", "prometheus", "node-exporter"):
        assert service["user"] not in ("root", "0")  # those three have a user of their own
    for published in service.get("ports", []):
        address, port, inside = published.split(":")
        assert address == "127.0.0.1"
        assert int(inside) > 1024
        assert int(port)


def test_services_that_stay_have_a_health_check() -> None:
    for name in SERVICES.keys() - ONE_SHOTS - {"balancer-checks"}:  # that nobody asks anything
        service = SERVICES[name]
        if name in OURS:
            check = image(ROOT / service["build"]["dockerfile"]).healthcheck
            assert check[-1].isdigit()
        else:
            assert service["healthcheck"]["test"][0] == "CMD"


def test_a_container_is_given_time_to_drain() -> None:
    triton, gateway = SERVICES["triton"], SERVICES["gateway"]
    drain = float(settings()["DETSERVE_DRAIN_TIMEOUT"])
    assert float(triton["stop_grace_period"].removesuffix("s")) > drain + 5 + 10
    grace = float(settings()["DETSERVE_GRACE"])
    assert float(gateway["stop_grace_period"].removesuffix("s")) > grace


def in_bytes(size: str) -> float:
    """A size as Docker writes it."""
    return float(size[:-1]) * {"m": 2**20, "g": 2**30}[size[-1]]


def test_memory_holds_the_largest_batches() -> None:
    config = read_model_config(ROOT / "model_repository/preprocess")
    instances = sum(group.count for group in config.instance_group)
    output = next(tensor for tensor in config.output if tensor.name == "images")
    height, width, channels = output.dims
    largest = int(config.parameters["max_bytes"].string_value) + height * width * channels
    # 16 images of 19.0 MiB made a process's part grow to 393 MiB: a third for what is left between.
    needed = instances * config.max_batch_size * largest * 1.3
    triton = SERVICES["triton"]
    assert in_bytes(triton["shm_size"]) >= needed
    assert in_bytes(triton["mem_limit"]) >= 2 * needed  # it counts towards the limit


def test_memory_holds_the_bodies_that_the_gateway_reads() -> None:
    limits = parse_settings([], SERVICES["gateway"]["environment"])
    needed = limits.max_reading * limits.max_body_bytes
    assert in_bytes(SERVICES["gateway"]["mem_limit"]) >= 1.3 * needed


def test_secrets_are_files_outside_the_repository() -> None:
    whole = compose(None, *COMPOSE_FILES)
    assert set(whole["secrets"]) == {"grafana_admin_password", "api_keys", "tls_cert", "tls_key"}
    for secret in whole["secrets"].values():
        assert set(secret) == {"file"}  # others cannot be had with a read-only root
        path = Path(secret["file"])
        assert path.is_absolute()
        assert not path.is_relative_to(ROOT)
    for name in settings():
        assert not re.search("PASSWORD|TOKEN|API_KEY", name)


@pytest.mark.parametrize("path", COMPOSE_FILES[1:], ids=lambda path: path.name)
def test_what_is_put_on_top_is_of_the_services_and_uses_its_secrets(path: Path) -> None:
    on_top = compose(None, path)
    for name, service in on_top["services"].items():
        assert name in SERVICES
        used = {v for v in service["environment"].values() if v.startswith("/run/secrets/")}
        assert used == {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
        assert set(service.get("secrets", [])) <= set(on_top["secrets"])
        if name == "balancer":
            known = settings(ROOT / "deploy/nginx/balancer.env")
            assert set(service["environment"]) <= set(known)
        if "DETSERVE_SERVER" in service["environment"]:
            addresses = parse_addresses(service["environment"]["DETSERVE_SERVER"])
            assert {address.host for address in addresses} <= set(SERVICES)


def test_with_settings_leaves_what_is_set(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "DETSERVE_GRACE": "3", "DETSERVE_HOST": ""}
    shown = subprocess.run(
        [str(ROOT / "deploy/with-settings"), "env"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert "DETSERVE_GRACE=3" in shown
    assert f"DETSERVE_GATEWAY_PORT={settings()['DETSERVE_GATEWAY_PORT']}" in shown
    assert "DETSERVE_HOST=127.0.0.1" in shown
    assert not [line for line in shown if line.startswith(("NVIDIA_TAG", "COMPOSE_"))]
    nothing = subprocess.run(
        [str(ROOT / "deploy/with-settings")], capture_output=True, text=True, timeout=10
    )
    assert (nothing.returncode, "usage" in nothing.stderr) == (2, True)


def test_the_page_speaks_of_what_there_is() -> None:
    page = (ROOT / "docs/containers.md").read_text()
    for path in re.findall(r"(?:deploy|tests|scripts)/[\w./-]+\w", page):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([\w.-]+\.md)", page):
        assert (ROOT / "docs" / link).exists(), link
    words = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", page)) - {"COMPOSE_PROFILES"}
    assert words <= set(settings())
    for profile in {p for service in SERVICES.values() for p in service.get("profiles", [])}:
        assert f"`{profile}`" in page or profile == "tools"  # whose services are run by name
