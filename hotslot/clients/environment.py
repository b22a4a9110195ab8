"""Defaults of the clients: from the environment of the process that makes them, else from the user's context.

| variable             | default          | stands for                                                       |
|----------------------|------------------|------------------------------------------------------------------|
| `HOTSLOT_STORE`      | `127.0.0.1:7400` | endpoint of the store, which also answers for placement          |
| `HOTSLOT_WORKER`     | `127.0.0.1:7500` | endpoint of a worker, or of all of them                          |
| `HOTSLOT_TENANT`     | `default`        | tenant of the calls                                              |
| `HOTSLOT_USE_PROXY`  | `false`          | go through the proxy that the environment names                  |
| `HOTSLOT_TIMEOUT_S`  | `600`            | deadline of a generation, in seconds                             |

Certificates and tokens are in `found_security.py`. An argument comes before a variable, that before the context in use
(`hotslot context`), and that before the default. A variable that is set to nothing counts as not set.
"""

import os
from enum import Enum

from hotslot.clients.defaults import DEFAULT_STORE, DEFAULT_WORKER, GENERATE_TIMEOUT_S
from hotslot.clients.found_security import flag, says_security, security_for, security_for_worker
from hotslot.clients.rpc import check_endpoint
from hotslot.contexts import chosen_context, context_for
from hotslot.endpoints import dialled_endpoint
from hotslot.errors import FieldViolation, InvalidEndpointError, InvalidRequestError
from hotslot.ids import parse_tenant
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.security import ChannelSecurity

USE_PROXY = "HOTSLOT_USE_PROXY"
TIMEOUT = "HOTSLOT_TIMEOUT_S"


class FromEnvironment(Enum):
    """Default of an argument that a variable stands for."""

    FROM_ENVIRONMENT = "from the environment"


FROM_ENVIRONMENT = FromEnvironment.FROM_ENVIRONMENT


def store_of(endpoint: str | FromEnvironment) -> str:
    """Endpoint of the store. Raises InvalidRequestError for a variable that holds none, and for wrong contexts."""
    return _endpoint("HOTSLOT_STORE", "store", DEFAULT_STORE) if endpoint is FROM_ENVIRONMENT else endpoint


def worker_of(endpoint: str | FromEnvironment, *, store: str = "") -> str:
    """Endpoint of the worker, which is the store's deployment's where a store is given.

    Raises InvalidRequestError for a variable that holds none, and for wrong contexts.
    """
    if endpoint is not FROM_ENVIRONMENT:
        return endpoint
    if store and not os.environ.get("HOTSLOT_WORKER"):
        return context_for(os.environ, "store", store, default=DEFAULT_STORE).worker or DEFAULT_WORKER
    return _endpoint("HOTSLOT_WORKER", "worker", DEFAULT_WORKER)


def options_of(options: ChannelOptions | None, *, store: str) -> ChannelOptions:
    """Options of calls to a store and its workers, where the caller gave none: of the context that names the store.

    Raises InvalidRequestError for variables that hold something else, and for contexts that cannot be read.
    """
    check_endpoint(store)
    if options is not None:
        return options
    tenant = _tenant()
    if not tenant and not says_security(os.environ):
        tenant = context_for(os.environ, "store", store, default=DEFAULT_STORE).tenant
    return _options(tenant, security_for(os.environ, store))


def worker_options_of(options: ChannelOptions | None, *, worker: str) -> ChannelOptions:
    """The same of calls to a worker alone: of the context that names it."""
    check_endpoint(worker)
    if options is not None:
        return options
    tenant = _tenant()
    if not tenant and not says_security(os.environ):
        tenant = context_for(os.environ, "worker", worker).tenant
    return _options(tenant, security_for_worker(os.environ, worker))


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


def _tenant() -> str:
    """Tenant that the environment names, empty where it names none."""
    text = os.environ.get("HOTSLOT_TENANT", "")
    try:
        return parse_tenant(text) if text else ""
    except InvalidRequestError as exc:
        raise _wrong("HOTSLOT_TENANT", exc.fields[0].description) from exc


def _options(tenant: str, security: ChannelSecurity) -> ChannelOptions:
    # Without a tenant it is the token's.
    named = parse_tenant(tenant) if tenant else None
    return ChannelOptions(tenant=named, use_proxy=uses_proxy(), security=security)


def _endpoint(variable: str, field_name: str, default: str) -> str:
    text = os.environ.get(variable) or ""
    if not text:
        return getattr(chosen_context(os.environ)[1], field_name) or default
    try:
        return str(dialled_endpoint(text))
    except InvalidEndpointError as exc:
        raise _wrong(variable, exc.message) from exc


def _wrong(variable: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(variable, problem)])
