"""The balancer's configuration: rendered as in its container, and taken by nginx."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import crossplane  # type: ignore[import-untyped]
import pytest

from balancing.nginx import DEPLOY, Nginx, NginxError, render, settings

CHANGES = (
    {"BALANCER_TRITONS": "127.0.0.1:1:2:3 127.0.0.1:4:5"},
    {"BALANCER_TRITONS": "127.0.0.1", "BALANCER_GATEWAYS": "127.0.0.1 127.0.0.1:81"},
    {"BALANCER_TRITONS": "127.0.0.1", "BALANCER_MAX_PER_ADDRESS": "50"},
)


@pytest.mark.parametrize("changes", CHANGES)
def test_nginx_and_crossplane_take_it(changes: dict[str, str]) -> None:
    own = Nginx(changes)
    try:
        assert "test is successful" in own.check()
        assert "warn" not in own.check()
        parsed = crossplane.parse(str(own.folder / "nginx.conf"))
    finally:
        own.stop()
    assert parsed["status"] == "ok", parsed["errors"]
    assert not own.folder.exists()


def test_the_lists_become_servers(tmp_path: Path) -> None:
    render({**CHANGES[0], "BALANCER_DIR": str(tmp_path)})
    lists = tmp_path / "servers"
    end = " max_fails=3 fail_timeout=3s;\n"
    assert (lists / "http.conf").read_text() == (f"server 127.0.0.1:1{end}server 127.0.0.1:4{end}")
    assert (lists / "grpc.conf").read_text() == (f"server 127.0.0.1:2{end}server 127.0.0.1:5{end}")


def test_envsubst_of_the_image_renders_the_same(tmp_path: Path) -> None:
    if not shutil.which("envsubst"):
        pytest.skip("no envsubst on PATH")
    changes = {**CHANGES[1], "BALANCER_DIR": str(tmp_path)}
    ours = render(changes).read_text()
    script = f"""
        . {DEPLOY}/15-balancer.envsh
        names=$(env | sed -n 's/^\\(BALANCER_[A-Z_]*\\)=.*/${{\\1}}/p')
        envsubst "$names" < {DEPLOY}/nginx.conf.template
    """
    theirs = subprocess.run(
        ["sh", "-ec", script],
        env={**os.environ, **settings(changes)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert theirs == ours


def test_an_unknown_setting() -> None:
    with pytest.raises(NginxError, match="no setting BALANCER_PORT"):
        Nginx({"BALANCER_PORT": "1"})


def test_nginx_says_what_is_wrong() -> None:
    with pytest.raises(NginxError, match="client_max_body_size"):
        Nginx({"BALANCER_TRITONS": "127.0.0.1", "BALANCER_MAX_BODY": "much"}).__enter__()
