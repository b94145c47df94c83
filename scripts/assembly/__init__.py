"""Assembling a model repository: ensembles, their configurations and their detectors' versions."""

from assembly.check import NotCheckableError, check_served
from assembly.install import Installed, install
from assembly.listing import list_ensembles
from assembly.serving import DEFAULT_ENSEMBLE, ENGINES, Kind, Serving, model_names
from assembly.versions import remove, roll_back

__all__ = [
    "DEFAULT_ENSEMBLE",
    "ENGINES",
    "Installed",
    "Kind",
    "NotCheckableError",
    "Serving",
    "check_served",
    "install",
    "list_ensembles",
    "model_names",
    "remove",
    "roll_back",
]
