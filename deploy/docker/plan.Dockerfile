# Builds TensorRT plans: NVIDIA's TensorRT image and the packages that scripts/build_plan.py needs.
# The image of Triton has TensorRT's libraries without their Python module. A plan runs only in the
# version that built it, so this one has to have the same tag as Triton's: NVIDIA_TAG sets both.
ARG NVIDIA_TAG=26.07-py3
FROM nvcr.io/nvidia/tensorrt:${NVIDIA_TAG}

# cuda-bindings has to be of the image's CUDA: 13 for 25.08 and later, else 12.
ARG CUDA_BINDINGS=cuda-bindings==13.*

COPY requirements.lock /tmp/requirements.lock
# The versions are those of the constraints.
# hadolint ignore=DL3013
RUN grep -v '^cuda-' /tmp/requirements.lock > /tmp/constraints.txt \
    && PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT=/tmp/constraints.txt \
        python3 -m pip install --no-cache-dir "${CUDA_BINDINGS}" numpy onnx onnxruntime \
        opencv-python-headless pillow simplejpeg tqdm 'tritonclient[grpc]' \
    && python3 -c 'import tensorrt; print("TensorRT", tensorrt.__version__)'

WORKDIR /detserve
COPY detserve ./detserve
COPY scripts ./scripts
ENV HOME=/tmp \
    PYTHONPATH=/detserve \
    PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title="detserve-plan" \
      org.opencontainers.image.description="Builds TensorRT plans of DetServe's detectors" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000:1000
# NVIDIA's entry point sets up CUDA's forward compatibility with the host's driver.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "python3", "scripts/build_plan.py"]
CMD ["--help"]
