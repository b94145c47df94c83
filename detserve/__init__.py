"""Object detection as plain Python: decode, letterbox, detect, suppress.

Nothing here needs a server; ``preprocess_backend`` and ``model_repository/postprocess`` adapt
these functions to Triton tensors.
Importing the package is cheap: the submodules bring their own dependencies.
"""

__version__ = "0.1.0"
