# The adapter store, and the gateway as `python -m gateway_service`: no torch, no GPU. From the repository's root:
#   docker build -f deploy/store.Dockerfile -t hotslot-store .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# More arguments for pip, for example an index of your own.
ARG PIP_ARGS=""
WORKDIR /src
RUN python -m venv /opt/hotslot
ENV PATH=/opt/hotslot/bin:$PATH
# Without the packages first: what they depend on stays in a layer that a change of the code does not touch.
COPY pyproject.toml LICENSE ./
COPY distributions distributions
COPY requirements/constraints.txt requirements/
RUN mkdir hotslot shared gateway_service store_service worker_service \
    && pip install --no-cache-dir ${PIP_ARGS} -c requirements/constraints.txt . \
        "./distributions/services[store,postgres,objects,gateway]"
COPY hotslot hotslot
COPY shared shared
COPY store_service store_service
COPY gateway_service gateway_service
RUN pip install --no-cache-dir ${PIP_ARGS} -c requirements/constraints.txt --no-deps --force-reinstall . \
        ./distributions/services \
    && pip uninstall --yes pip setuptools

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 hotslot \
    && useradd --uid 10001 --gid hotslot --no-create-home --home-dir /var/lib/hotslot hotslot \
    && install -d -o hotslot -g hotslot -m 0750 /var/lib/hotslot
COPY --from=build /opt/hotslot /opt/hotslot
COPY deploy/healthcheck.py /opt/hotslot/bin/hotslot-health.py
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
