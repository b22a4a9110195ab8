# A worker, for CPUs or for CUDA. Build it from the repository's root:
#   docker build -f deploy/worker.Dockerfile -t hotslot-worker .
#   docker build -f deploy/worker.Dockerfile -t hotslot-worker:cuda --build-arg DEVICE=cuda .
# requirements/worker.lock has pip's default build of torch, which on x86-64 brings CUDA's libraries (several GB). For a
# small CPU image: --build-arg LOCK=worker-cpu.lock, with PyTorch's CPU index as --build-arg PIP_ARGS="--extra-index-url …",
# or with the wheel in build/wheels.
# Without a compiler, for workers whose compiled code others ship (docs/deploy.md says where that works):
#   docker build -f deploy/worker.Dockerfile -t hotslot-worker:shipped --build-arg WITH_COMPILER=no …
# Pin the base by its digest for a release: --build-arg PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PIP_ARGS=""
ARG LOCK=worker.lock
ARG DEVICE=cpu
WORKDIR /src
RUN python -m venv /opt/build && python -m venv /opt/hotslot
# What builds the packages and writes the SBOM stays in this stage.
COPY requirements/build.lock requirements/
RUN /opt/build/bin/pip install --no-cache-dir ${PIP_ARGS} --require-hashes --no-deps --only-binary :all: -r requirements/build.lock
# The pattern matches nothing when there is no build/wheels, and then the rest is still copied.
COPY requirements/worker.lock requirements/worker-cpu.lock build/wheel[s]/*.whl ./
RUN /opt/hotslot/bin/pip install --no-cache-dir --find-links . ${PIP_ARGS} --require-hashes --no-deps --only-binary :all: \
        -r ${LOCK} \
    && /opt/hotslot/bin/python -c "import sys, torch; cuda = torch.version.cuda; \
print('torch', torch.__version__, 'CUDA', cuda); \
sys.exit('DEVICE=cuda needs a CUDA build of torch' if '${DEVICE}' == 'cuda' and not cuda else 0)"
COPY pyproject.toml LICENSE ./
COPY distributions distributions
COPY hotslot hotslot
COPY shared shared
RUN mkdir store_service gateway_service controller_service
COPY worker_service worker_service
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /src/own . \
        ./distributions/services \
    && /opt/hotslot/bin/pip install --no-cache-dir --no-index --no-deps /src/own/*.whl \
    && /opt/hotslot/bin/pip check \
    && /opt/hotslot/bin/pip uninstall --yes pip \
    && rm /opt/hotslot/bin/hotslot \
    && /opt/build/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/hotslot/sbom.cdx.json /opt/hotslot/bin/python

FROM ${PYTHON_IMAGE}
ARG DEVICE=cpu
ARG WITH_COMPILER=yes
# torch.compile generates C++ (and, for CUDA, launchers in C) that is compiled at start, against Python's headers.
RUN if [ "${WITH_COMPILER}" = yes ]; then apt-get update \
    && apt-get install --yes --no-install-recommends g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && test -f "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"; \
    else test "${WITH_COMPILER}" = no && ! command -v g++ && ! command -v c++ && ! command -v cc; fi
RUN groupadd --gid 10001 hotslot \
    && useradd --uid 10001 --gid hotslot --no-create-home --home-dir /var/cache/hotslot hotslot \
    && install -d -o hotslot -g hotslot -m 0750 /var/cache/hotslot
COPY --from=build /opt/hotslot /opt/hotslot
COPY deploy/healthcheck.py /opt/hotslot/bin/hotslot-health.py
ENV PATH=/opt/hotslot/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/var/cache/hotslot/huggingface \
    HOTSLOT_LISTEN=[::]:7500 \
    HOTSLOT_CACHE_DIR=/var/cache/hotslot \
    HOTSLOT_DEVICE=${DEVICE} \
    HOTSLOT_LOG_FORMAT=json
WORKDIR /var/cache/hotslot
USER 10001:10001
VOLUME /var/cache/hotslot
EXPOSE 7500
# The first start compiles, which can take minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s CMD ["python", "/opt/hotslot/bin/hotslot-health.py"]
ENTRYPOINT ["python", "-m", "worker_service"]
