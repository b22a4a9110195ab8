# A worker, for CPUs or for CUDA. Build it from the repository's root:
#   docker build -f deploy/worker.Dockerfile -t hotslot-worker .
#   docker build -f deploy/worker.Dockerfile -t hotslot-worker:cuda --build-arg DEVICE=cuda .
# On x86-64 pip's default build of torch brings CUDA's libraries (several GB). For a small CPU image give pip the
# index with PyTorch's CPU builds, --build-arg PIP_ARGS="--extra-index-url …", or put the wheel into build/wheels.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PIP_ARGS=""
ARG TORCH_SPEC=torch
ARG DEVICE=cpu
WORKDIR /src
RUN python -m venv /opt/hotslot
ENV PATH=/opt/hotslot/bin:$PATH
# The pattern matches nothing when there is no build/wheels, and then the rest is still copied.
COPY pyproject.toml LICENSE build/wheel[s]/*.whl ./
COPY distributions distributions
COPY requirements/constraints.txt requirements/
# torch first, by its pin, so that the resolver cannot choose another build.
RUN pip install --no-cache-dir --find-links . ${PIP_ARGS} -c requirements/constraints.txt "${TORCH_SPEC}" \
    && python -c "import sys, torch; cuda = torch.version.cuda; \
print('torch', torch.__version__, 'CUDA', cuda); \
sys.exit('DEVICE=cuda needs a CUDA build of torch' if '${DEVICE}' == 'cuda' and not cuda else 0)"
# Without the packages first: what they depend on stays in a layer that a change of the code does not touch.
RUN mkdir hotslot shared gateway_service store_service worker_service \
    && pip install --no-cache-dir --find-links . ${PIP_ARGS} -c requirements/constraints.txt . \
        "./distributions/services[worker]"
COPY hotslot hotslot
COPY shared shared
COPY worker_service worker_service
RUN pip install --no-cache-dir ${PIP_ARGS} -c requirements/constraints.txt --no-deps --force-reinstall . \
        ./distributions/services \
    && pip uninstall --yes pip \
    && rm /opt/hotslot/bin/hotslot

FROM ${PYTHON_IMAGE}
ARG DEVICE=cpu
# torch.compile generates C++ (and, for CUDA, launchers in C) that is compiled at start, against Python's headers.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && test -f "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
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
