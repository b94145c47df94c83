# syntax=docker/dockerfile:1.7
# detserve-triton: NVIDIA's Triton, the launcher, and the packages of the Python models. One image
# for CPU and GPU. The models are a volume, /models; the target `baked` has them inside.
#   docker build -f deploy/docker/triton.Dockerfile -t detserve-triton .
#   docker build -f deploy/docker/triton.Dockerfile -t detserve-triton:baked --target baked .
ARG NVIDIA_TAG=26.07-py3
FROM nvcr.io/nvidia/tritonserver:${NVIDIA_TAG} AS base

# Before the code: a change of the code installs nothing. The image's interpreter is the one that
# Triton's Python backend was built for, so the packages go there and not into an environment.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements.lock,target=/tmp/requirements.lock \
    --mount=type=bind,source=deploy/docker/triton.txt,target=/tmp/triton.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install \
        --only-binary=:all: --constraint /tmp/requirements.lock --requirement /tmp/triton.txt

WORKDIR /detserve
# The backend's process ignores PYTHONPATH: a .pth file tells it where the code is.
RUN python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > /tmp/packages \
    && echo /detserve > "$(cat /tmp/packages)/detserve.pth" \
    && rm /tmp/packages
COPY deploy/docker/healthcheck.py ./
COPY preprocess_backend ./preprocess_backend
COPY local_server ./local_server
COPY detserve ./detserve
# Fails the build, not the start, where a package or Triton is missing.
RUN python3 -c 'import detserve.imaging, detserve.nms, detserve.model_config' \
    && python3 -m local_server --help > /dev/null \
    && command -v tritonserver

ENV DETSERVE_MODEL_REPOSITORY=/models \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="detserve-triton" \
      org.opencontainers.image.description="DetServe's detection ensemble on NVIDIA Triton" \
      org.opencontainers.image.licenses="Apache-2.0"
# NVIDIA's triton-server. Any other will do: it writes to /tmp and /dev/shm only.
USER 1000:1000
EXPOSE 8000 8001 8002 8003
# SIGTERM: requests in flight are answered, new ones refused (DETSERVE_DRAIN_TIMEOUT).
STOPSIGNAL SIGTERM
# 200 only while every model answers real inferences; Triton's own health does not notice when the
# process of a model is gone.
HEALTHCHECK --interval=10s --timeout=10s --start-period=180s --start-interval=2s --retries=3 \
    CMD ["python3", "-I", "-S", "/detserve/healthcheck.py", "DETSERVE_HEALTH_PORT", "8003"]
# NVIDIA's entry point sets up CUDA's forward compatibility with the host's driver.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "python3", "-m", "local_server", "--host", "0.0.0.0"]

FROM base AS baked
COPY model_repository /models
RUN test -s /models/detector/1/model.onnx || test -s /models/detector/1/model.plan

# The last one is what is built where no target is named.
FROM base AS runtime
