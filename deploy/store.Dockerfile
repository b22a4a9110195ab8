# The adapter store, the gateway as `python -m gateway_service` and the controller as `python -m controller_service`: no
# torch, no GPU. From the repository's root:
#   docker build -f deploy/store.Dockerfile -t hotslot-store .
# Pin the base by its digest for a release: --build-arg PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# More arguments for pip, for example an index of your own; hashes hold wherever the files come from.
ARG PIP_ARGS=""
WORKDIR /src
RUN python -m venv /opt/build && python -m venv /opt/hotslot
# What builds the packages and writes the SBOM stays in this stage.
COPY requirements/build.lock requirements/
RUN /opt/build/bin/pip install --no-cache-dir ${PIP_ARGS} --require-hashes --no-deps --only-binary :all: -r requirements/build.lock
COPY requirements/store.lock requirements/
RUN /opt/hotslot/bin/pip install --no-cache-dir ${PIP_ARGS} --require-hashes --no-deps --only-binary :all: -r requirements/store.lock
COPY pyproject.toml LICENSE ./
COPY distributions distributions
COPY hotslot hotslot
COPY shared shared
RUN mkdir worker_service
COPY store_service store_service
COPY gateway_service gateway_service
COPY controller_service controller_service
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /src/wheels . \
        ./distributions/services \
    && /opt/hotslot/bin/pip install --no-cache-dir --no-index --no-deps /src/wheels/*.whl \
    && /opt/hotslot/bin/pip check \
    && /opt/hotslot/bin/pip uninstall --yes pip setuptools \
    && /opt/build/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/hotslot/sbom.cdx.json /opt/hotslot/bin/python

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 hotslot \
    && useradd --uid 10001 --gid hotslot --no-create-home --home-dir /var/lib/hotslot hotslot \
    && install -d -o hotslot -g hotslot -m 0750 /var/lib/hotslot
COPY --from=build /opt/hotslot /opt/hotslot
COPY deploy/healthcheck.py /opt/hotslot/bin/hotslot-health.py
COPY deploy/credentials.py /opt/hotslot/bin/hotslot-credentials.py
ENV PATH=/opt/hotslot/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOTSLOT_LISTEN=[::]:7400 \
    HOTSLOT_DATA_DIR=/var/lib/hotslot \
    HOTSLOT_LOG_FORMAT=json
WORKDIR /var/lib/hotslot
USER 10001:10001
VOLUME /var/lib/hotslot
EXPOSE 7400
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "/opt/hotslot/bin/hotslot-health.py"]
ENTRYPOINT ["python", "-m", "store_service"]
