# syntax=docker/dockerfile:1.7
# detserve-tools: the scripts (fetch, import, optimise, evaluate, build a repository) and the load
# tests. It writes to /detserve/build, to the model repository that it is given, and to /tmp.
#   docker build -f deploy/docker/tools.Dockerfile -t detserve-tools .
#   docker run --rm detserve-tools scripts/build_repository.py --help
ARG PYTHON_TAG=3.11.13-slim-bookworm
FROM python:${PYTHON_TAG} AS packages
RUN python -m venv --without-pip /opt/venv
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements.lock,target=/tmp/requirements.lock \
    --mount=type=bind,source=deploy/docker/tools.txt,target=/tmp/tools.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 python -m pip --python /opt/venv/bin/python install \
        --only-binary=:all: --constraint /tmp/requirements.lock --requirement /tmp/tools.txt

FROM python:${PYTHON_TAG} AS runtime
# /detserve/build and /models belong to the user, and so do new volumes mounted there.
RUN useradd --uid 1000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin detserve \
    && install --directory --owner=1000 --group=1000 /detserve/build /models
COPY --from=packages /opt/venv /opt/venv
WORKDIR /detserve
COPY model_repository ./model_repository
COPY preprocess_backend ./preprocess_backend
COPY local_server ./local_server
COPY examples ./examples
COPY loadtest ./loadtest
COPY detserve ./detserve
COPY clients ./clients
COPY scripts ./scripts
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONPATH=/detserve:/detserve/clients:/detserve/scripts \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN ["python", "scripts/build_repository.py", "--help"]
LABEL org.opencontainers.image.title="detserve-tools" \
      org.opencontainers.image.description="DetServe's model tools and load tests" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000:1000
ENTRYPOINT ["python"]
CMD ["scripts/build_repository.py", "--help"]
