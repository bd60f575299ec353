# The service: `docker build -t bitplan .`, then `docker compose up` (compose.yaml). Versions are those of requirements.lock.
# torch comes from pip's default index, a CUDA build of several gigabytes on Linux; for a machine without a GPU build with
#   --build-arg PIP_EXTRA_INDEX_URL=<the index of torch's CPU wheels>
FROM python:3.11-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL
# A C compiler for the module that multiplies packed words; the last stage has none.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/bitplan
ENV PATH=/opt/bitplan/bin:$PATH
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY __init__.py py.typed ./
COPY kernels kernels
COPY solvers solvers
COPY sensitivity sensitivity
COPY allocator allocator
COPY api api
RUN pip install -c requirements.lock setuptools && pip install -c requirements.lock .

FROM python:3.11-slim-bookworm
# One thread a process is faster for small tensors; workers with many cores may set more.
ENV PATH=/opt/bitplan/bin:$PATH BITPLAN_HOME=/var/lib/bitplan BITPLAN_MODEL_ROOTS=/models OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 10001 bitplan && mkdir -p /var/lib/bitplan /models && chown bitplan /var/lib/bitplan
COPY --from=build /opt/bitplan /opt/bitplan
USER 10001
VOLUME ["/var/lib/bitplan"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["bitplan"]
CMD ["serve", "--host", "0.0.0.0"]
