"""A model whose queue is full all the time is healed like any other."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import numpy as np
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.server.conftest import on_any_ports
from tests.server.test_supervisor import RECOVERY, health, wait_for

USERS = 40
MODEL = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.3)
        tensors = [pb_utils.get_input_tensor_by_name(r, "X").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", t)]) for t in tensors]
"""
CONFIG = """
name: "slow"
backend: "python"
max_batch_size: 1
input [ { name: "X" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
"""


def test_it_is_healed_without_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "slow" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (folder.parent / "config.pbtxt").write_text(CONFIG)
    lines: list[str] = []
    ending = threading.Event()
    outcomes = Counter[str]()

    def use(address: str) -> None:
        with triton_grpc.InferenceServerClient(address) as client:
            while not ending.is_set():
                tensor = triton_grpc.InferInput("X", [1, 2], "FP32")
                tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
                try:
                    client.infer("slow", [tensor], client_timeout=30)
                except InferenceServerException as error:
                    outcomes["full" if "maximum queue size" in error.message() else "lost"] += 1
                    ending.wait(0.01)
                else:
                    outcomes["answered"] += 1

    with on_any_ports(tmp_path / "models", show=lines.append) as server:
        address = server.grpc_url.removeprefix("grpc://")
        users = [threading.Thread(target=use, args=(address,)) for _ in range(USERS)]
        for user in users:
            user.start()
        try:
            wait_for(lambda: outcomes["full"] > 20, 10)
            (victim,) = server.stub_pids()
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: server.health()["models"]["slow"]["reloads"] > 0, 2 * RECOVERY)
            wait_for(lambda: health(server)[0] == 200, 2 * RECOVERY)
            before = outcomes["answered"]
            wait_for(lambda: outcomes["answered"] > before + 5, 10)
            state = server.health()
        finally:
            ending.set()
            for user in users:
                user.join()
    assert state["restarts"] == 0
    assert state["models"]["slow"]["reloads"] == 1
    assert not [line for line in lines if "reloading it failed" in line]
