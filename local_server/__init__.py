"""Triton from pip or from its container: launcher, health supervisor, stand-in backend.

with TritonServer("model_repository") as server:
client = DetectionClient(server.grpc_url)
"""

from local_server._control import Control, find_control
from local_server._errors import PortBusyError, ServerError
from local_server._generations import CANDIDATE_OF, RECORD, unused_models
from local_server._server import TritonServer

__all__ = [
    "CANDIDATE_OF",
    "RECORD",
    "Control",
    "PortBusyError",
    "ServerError",
    "TritonServer",
    "find_control",
    "unused_models",
]
