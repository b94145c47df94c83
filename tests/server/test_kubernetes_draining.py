"""A Triton that leaves the headless Service and then ends, without a cluster: nobody notices.

The times are those of deploy/kubernetes/base/triton.yaml, but for connections that end sooner.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_clients_leave_before_a_server_ends() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--mount", "true"], check=False).returncode:
        pytest.skip("a mount namespace cannot be made: not root, or no unshare")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "clients", ROOT / "scripts")))
    done = subprocess.run(
        [unshare, "--mount", sys.executable, "-m", "tests.server.draining", "2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == []
    assert found["asked_at_first"] > 0, "nobody was there to leave"
    assert found["asked_after_leaving"] == 0
    assert found["answers_after_its_end"] > 0
