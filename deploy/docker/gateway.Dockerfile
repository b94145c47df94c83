# syntax=docker/dockerfile:1.7
# detserve-gateway: REST, WebSocket and the web page.
#   docker build -f deploy/docker/gateway.Dockerfile -t detserve-gateway .
ARG PYTHON_TAG=3.11.13-slim-bookworm
FROM python:${PYTHON_TAG} AS packages
# Without pip in it: what is served has nothing to install things with.
RUN python -m venv --without-pip /opt/venv
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements.lock,target=/tmp/requirements.lock \
    --mount=type=bind,source=deploy/docker/gateway.txt,target=/tmp/gateway.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 python -m pip --python /opt/venv/bin/python install \
        --only-binary=:all: --constraint /tmp/requirements.lock --requirement /tmp/gateway.txt

FROM python:${PYTHON_TAG} AS runtime
RUN useradd --uid 1000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin detserve \
    && python -m pip uninstall --yes --root-user-action=ignore setuptools wheel pip
COPY --from=packages /opt/venv /opt/venv
WORKDIR /detserve
COPY deploy/docker/healthcheck.py ./
COPY detserve ./detserve
COPY clients ./clients
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONPATH=/detserve:/detserve/clients \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN ["python", "-m", "gateway", "--version"]
LABEL org.opencontainers.image.title="detserve-gateway" \
      org.opencontainers.image.description="DetServe's REST gateway and web page" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000:1000
EXPOSE 8080
# SIGTERM: requests under way are answered (DETSERVE_GRACE).
STOPSIGNAL SIGTERM
# A real inference at the server behind it, once a check.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --start-interval=2s --retries=3 \
    CMD ["python3", "-I", "-S", "/detserve/healthcheck.py", "DETSERVE_GATEWAY_PORT", "8080"]
ENTRYPOINT ["python", "-m", "gateway", "--host", "0.0.0.0"]
