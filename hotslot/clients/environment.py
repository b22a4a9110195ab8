"""Defaults of the clients, from the environment of the process that makes them.

| variable             | default          | stands for                                                       |
|----------------------|------------------|------------------------------------------------------------------|
| `HOTSLOT_STORE`      | `127.0.0.1:7400` | endpoint of the store, which also answers for placement          |
| `HOTSLOT_WORKER`     | `127.0.0.1:7500` | endpoint of a worker, or of all of them                          |
| `HOTSLOT_TENANT`     | `default`        | tenant of the calls                                              |
| `HOTSLOT_USE_PROXY`  | `false`          | go through the proxy that the environment names                  |
| `HOTSLOT_TIMEOUT_S`  | `600`            | deadline of a generation, in seconds                             |

Certificates and tokens are in `found_security.py`. An argument comes before a variable. One that is set to nothing
counts as not set.
"""

import os
from enum import Enum

from hotslot.clients.defaults import DEFAULT_STORE, DEFAULT_WORKER, GENERATE_TIMEOUT_S
from hotslot.clients.found_security import flag, found_security, security_for
from hotslot.endpoints import dialled_endpoint
from hotslot.errors import FieldViolation, InvalidEndpointError, InvalidRequestError
from hotslot.ids import parse_tenant
from hotslot.rpc.channel import ChannelOptions

USE_PROXY = "HOTSLOT_USE_PROXY"
TIMEOUT = "HOTSLOT_TIMEOUT_S"


class FromEnvironment(Enum):
    """Default of an argument that a variable stands for."""

    FROM_ENVIRONMENT = "from the environment"


FROM_ENVIRONMENT = FromEnvironment.FROM_ENVIRONMENT


def store_of(endpoint: str | FromEnvironment) -> str:
    """Endpoint of the store. Raises InvalidRequestError for a variable that holds none."""
    return _endpoint("HOTSLOT_STORE", DEFAULT_STORE) if endpoint is FROM_ENVIRONMENT else endpoint


def worker_of(endpoint: str | FromEnvironment) -> str:
    """Endpoint of the worker. Raises InvalidRequestError for a variable that holds none."""
    return _endpoint("HOTSLOT_WORKER", DEFAULT_WORKER) if endpoint is FROM_ENVIRONMENT else endpoint


def options_of(options: ChannelOptions | None, store: str | None = None) -> ChannelOptions:
    """Options of calls to a store and its workers, or to a worker alone, to which no context's token goes.

    Raises InvalidRequestError for variables that hold something else.
    """
    if options is not None:
        return options
    text = os.environ.get("HOTSLOT_TENANT", "")
    try:
        # Without one it is the token's.
        tenant = parse_tenant(text) if text else None
    except InvalidRequestError as exc:
        raise _wrong("HOTSLOT_TENANT", exc.fields[0].description) from exc
    security = found_security(os.environ, {}).for_workers() if store is None else security_for(os.environ, store)
    return ChannelOptions(tenant=tenant, use_proxy=uses_proxy(), security=security)


def uses_proxy() -> bool:
    """True when calls go through the proxy that the environment names; raises InvalidRequestError."""
    return flag(USE_PROXY, os.environ.get(USE_PROXY, ""))


def timeout_of(timeout_s: float | FromEnvironment) -> float:
    """Deadline of a generation in seconds. Raises InvalidRequestError for a variable that holds none."""
    if timeout_s is not FROM_ENVIRONMENT:
        return timeout_s
    text = os.environ.get(TIMEOUT) or str(GENERATE_TIMEOUT_S)
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        raise _wrong(TIMEOUT, f"found {text!r}, expected seconds above 0")
    return found


def _endpoint(variable: str, default: str) -> str:
    text = os.environ.get(variable) or default
    try:
        return str(dialled_endpoint(text))
    except InvalidEndpointError as exc:
        raise _wrong(variable, exc.message) from exc


def _wrong(variable: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(variable, problem)])
