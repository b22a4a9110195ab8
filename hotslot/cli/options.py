"""The options that commands share, and the client that they open."""

import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hotslot.cli.digests import check_reference, full_reference
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.clients.defaults import DEFAULT_STORE, DEFAULT_WORKER
from hotslot.clients.environment import uses_proxy
from hotslot.clients.found_security import found_security, security_for
from hotslot.contexts import CONTEXT_VARIABLE, FIELDS, SavedContext, chosen_context, contexts_path
from hotslot.contract.generation import AdapterSelection
from hotslot.endpoints import dialled_endpoint
from hotslot.errors import FieldViolation, InvalidEndpointError, InvalidRequestError
from hotslot.ids import parse_tenant
from hotslot.rpc.channel import ChannelOptions

StoreOption = Annotated[
    str, typer.Option("--store", envvar="HOTSLOT_STORE", metavar="HOST:PORT", help="Endpoint of the store.")
]
WorkerOption = Annotated[
    str, typer.Option("--worker", envvar="HOTSLOT_WORKER", metavar="HOST:PORT", help="Endpoint of the worker.")
]
TenantOption = Annotated[
    str, typer.Option("--tenant", envvar="HOTSLOT_TENANT", metavar="NAME", help="Tenant whose adapters are meant.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, as -o json.")]
BaseOption = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="NAME",
        help="Base model, by name or digest; by default the one that the adapter's config names.",
    ),
]
LimitOption = Annotated[int, typer.Option("--limit", min=0, metavar="N", help="At most N of each list; 0: all.")]
_REFERENCE = "name\\[:tag]\\[@sha256:…]; the first digits of a digest are enough."
ReferenceArgument = Annotated[str, typer.Argument(metavar="REF", help=f"Reference: {_REFERENCE}")]
ReferencesArgument = Annotated[
    list[str], typer.Argument(metavar="REF…", help=f"References, one or several: {_REFERENCE}")
]

ContextOption = Annotated[
    str,
    typer.Option(
        "--context",
        envvar=CONTEXT_VARIABLE,
        metavar="NAME",
        help="Context that names store, worker and tenant where no option and no variable does.",
    ),
]

STORE = DEFAULT_STORE
WORKER = DEFAULT_WORKER
CHOSEN: ContextVar[str] = ContextVar("chosen context", default="")
"""Context that the command line names; empty where it names none."""
TENANT = ""
"""Leaves the tenant to the token; it is `default` without one."""


def open_client(
    *,
    store: str = DEFAULT_STORE,
    worker: str = DEFAULT_WORKER,
    tenant: str = TENANT,
    route: bool = False,
    calls: ChannelOptions | None = None,
) -> BlockingHotslotClient:
    """The client of the deployment that the options name; use it with `with`.

    `calls` are the options of its channels, where they are known already.
    """
    return BlockingHotslotClient(
        checked_endpoint(store, "--store (HOTSLOT_STORE)"),
        checked_endpoint(worker, "--worker (HOTSLOT_WORKER)"),
        route=route,
        options=calls or channel_options(tenant, store),
    )


def channel_options(tenant: str, store: str, *, without_contexts: bool = False) -> ChannelOptions:
    """The options of every channel that a command opens, to a store or its workers; raises InvalidRequestError."""
    named = parse_tenant(tenant) if tenant else None
    if without_contexts:
        security = found_security(os.environ, SavedContext())
    else:
        security = security_for(os.environ, store, CHOSEN.get())
    return ChannelOptions(tenant=named, use_proxy=uses_proxy(), security=security)


def environment() -> Mapping[str, str]:
    """The environment of this command."""
    return os.environ


def is_given(context: typer.Context, name: str) -> bool:
    """Tell if a parameter was given on the command line or by the environment, rather than by a context or default."""
    return getattr(context.get_parameter_source(name), "name", "") in ("COMMANDLINE", "ENVIRONMENT")


def context_defaults(name: str) -> tuple[str, dict[str, str]]:
    """Name of the context in use, empty for none, and what it says in place of the defaults of options."""
    CHOSEN.set(name)
    used, context = chosen_context(os.environ, name)
    return used, {key: value for key, value in context.known().items() if key in FIELDS}


def contexts_file() -> Path:
    """Place of the file of contexts."""
    return contexts_path(os.environ)


def checked_endpoint(text: str, option: str) -> str:
    """Refuse an endpoint that gRPC would only fail to resolve much later."""
    try:
        return str(dialled_endpoint(text))
    except InvalidEndpointError as exc:
        raise InvalidRequestError(exc.fields, f"{option}: {exc.message}") from exc


def parse_selection(text: str) -> AdapterSelection:
    """`REF[=WEIGHT]`; raises InvalidRequestError."""
    reference, equals, weight_text = text.partition("=")
    check_reference(reference)
    if not equals:
        return AdapterSelection(reference)
    try:
        return AdapterSelection(reference, float(weight_text))
    except ValueError as exc:
        problem = f"found weight {weight_text!r} in {text!r}, expected a number: REF=0.5"
        raise InvalidRequestError([FieldViolation("--adapter", problem)]) from exc


def full_selection(client: BlockingHotslotClient, selection: AdapterSelection) -> AdapterSelection:
    """A selection with the digest of its reference in full."""
    return replace(selection, reference=full_reference(client, selection.reference))
