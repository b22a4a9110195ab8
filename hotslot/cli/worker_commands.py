"""Commands on one worker: status, load, unload, pin, unpin, default, enable, disable."""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from hotslot.cli import options
from hotslot.cli.digests import check_reference, full_reference
from hotslot.cli.interrupts import interruptible_pauses
from hotslot.cli.live_screen import follow
from hotslot.cli.options import (
    JsonOption,
    LimitOption,
    ReferencesArgument,
    StoreOption,
    TenantOption,
    WorkerOption,
    full_selection,
    open_client,
    parse_selection,
)
from hotslot.cli.orders import AdapterOrder, first_of, ordered_adapters
from hotslot.cli.output import console, each, print_document, say, show
from hotslot.cli.rendering import details_table, human_duration, short_digest
from hotslot.cli.worker_view import loaded_table, status_rows
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.contract.control import LoadResult, WorkerAdapters, WorkerStatus
from hotslot.contract.store_status import StoreStatus
from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError

STATUS_EVERY_S = 2.0
STORE_PATIENCE_S = 4.0
"""Wait for the store's status, of which each part takes two seconds at most."""
WorkerAct = Callable[[BlockingHotslotClient, str], tuple[Any, str]]


def status(
    order: Annotated[AdapterOrder, typer.Option("--sort", help="Order of the adapters.")] = AdapterOrder.NAME,
    limit: LimitOption = 0,
    follows: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow it until Ctrl-C or q; on a terminal, keys sort and scroll.")
    ] = False,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Show a worker's status, the adapters that it holds, and what of the store does not work.

    JSON: {status, adapters: {adapters, default_adapters, adapters_enabled}, store (its status, or null)}; with --watch
    again and again.
    """
    with open_client(store=store, worker=worker, tenant=tenant) as client:
        if follows and console().is_terminal and not as_json:
            orders = [one.value for one in AdapterOrder]
            follow(lambda chosen: _status(client, AdapterOrder(chosen), limit)[1], order.value, orders, STATUS_EVERY_S)
            return
        with interruptible_pauses() as pause:
            while True:
                document, screen = _status(client, order, limit)
                if as_json:
                    print_document(document)
                else:
                    show(screen)
                if not follows:
                    return
                sys.stdout.flush()
                pause(STATUS_EVERY_S)


def _status(client: BlockingHotslotClient, order: AdapterOrder, limit: int) -> tuple[dict[str, Any], RenderableType]:
    """Document and screen of a worker's status."""
    found = client.worker.status()
    held = client.worker.list_adapters()
    listed, more = first_of(ordered_adapters(held.adapters, order), limit)
    store = _store_status(client)
    shown = replace(held, adapters=tuple(listed))
    document = {"status": found, "adapters": shown, "store": store}
    return document, status_view(found, shown, more, datetime.now(UTC), store)


def _store_status(client: BlockingHotslotClient) -> StoreStatus | None:
    """Status of the store; None where it does not answer, or is of a release that tells none."""
    try:
        return client.store.status(timeout_s=STORE_PATIENCE_S)
    except HotslotError:
        return None


def status_view(
    found: WorkerStatus, held: WorkerAdapters, more: str, now: datetime, store: StoreStatus | None = None
) -> Group:
    """Screen of `hotslot status`; `more` says how many adapters are left out."""
    failing = store.failing if store is not None else ()
    parts = [(f"store's {part.name}", f"does not work: {part.why}") for part in failing]
    defaults = ", ".join(f"{d.reference}={d.weight:g}" for d in held.default_adapters) or "the base model"
    adapters = ("default", defaults if held.adapters_enabled else "adapters are disabled")
    tables: list[RenderableType] = ["", loaded_table(held.adapters, now)] if held.adapters else []
    return Group(details_table([*status_rows(found, now), adapters, *parts]), *tables, *([more] if more else []))


def load(
    references: ReferencesArgument,
    host_only: Annotated[bool, typer.Option("--host-only", help="Load into host memory only, not into slots.")] = False,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Bring the version that a reference stands for now into a worker's slots.

    JSON: {adapter, previous_digest, timings}; of several a list.
    """

    def act(client: BlockingHotslotClient, reference: str) -> tuple[LoadResult, str]:
        result = client.worker.load(reference, host_only=host_only)
        was = f", was {short_digest(result.previous_digest)}" if result.previous_digest else ""
        if not as_json:
            say(_took(result))
        return result, f"{reference} is {result.adapter.digest} in tier {result.adapter.tier}{was}"

    _each(references, act, store, worker, tenant, as_json=as_json)


def unload(
    references: ReferencesArgument,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for the requests that use it.")
    ] = 60,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Remove an adapter from a worker once the requests that use it have finished.

    JSON: {digest}; of several a list.
    """

    def act(client: BlockingHotslotClient, reference: str) -> tuple[dict[str, str], str]:
        digest = client.worker.unload(reference, timeout_s=timeout_s)
        return {"digest": digest}, f"unloaded {reference} ({digest})"

    _each(references, act, store, worker, tenant, as_json=as_json)


def pin(
    references: ReferencesArgument,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Keep an adapter in a worker's slots; loads it first if need be.

    JSON: {adapter}; of several a list.
    """

    def act(client: BlockingHotslotClient, reference: str) -> tuple[Any, str]:
        adapter = client.worker.pin(reference)
        return {"adapter": adapter}, f"pinned {reference} ({adapter.digest})"

    _each(references, act, store, worker, tenant, as_json=as_json)


def unpin(
    references: ReferencesArgument,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Let an adapter be evicted again.

    JSON: {adapter}; of several a list.
    """

    def act(client: BlockingHotslotClient, reference: str) -> tuple[Any, str]:
        adapter = client.worker.unpin(reference)
        return {"adapter": adapter}, f"unpinned {reference} ({adapter.digest})"

    _each(references, act, store, worker, tenant, as_json=as_json)


def default(
    adapters: Annotated[
        list[str] | None, typer.Argument(metavar="[REF[=WEIGHT]]…", help="The adapters; none with --base-only.")
    ] = None,
    base_only: Annotated[bool, typer.Option("--base-only", help="Answer with the base model alone.")] = False,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Set the adapters of requests that name none, or show them.

    JSON: {default_adapters}.
    """
    selections = [parse_selection(text) for text in adapters or []]
    if selections and base_only:
        raise InvalidRequestError([FieldViolation("--base-only", "leaves no adapters; name some, or say --base-only")])
    with open_client(store=store, worker=worker, tenant=tenant) as client:
        if selections or base_only:
            now = client.worker.set_default_adapters([full_selection(client, one) for one in selections])
        else:
            now = client.worker.list_adapters().default_adapters
    if as_json:
        print_document({"default_adapters": now})
    else:
        named = ", ".join(f"{one.reference}={one.weight:g}" for one in now) or "the base model"
        print(f"requests that name no adapter get {named}")


def enable(
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Let a worker serve adapters again, after `disable`.

    JSON: {adapters_enabled}.
    """
    with open_client(store=store, worker=worker, tenant=tenant) as client:
        client.worker.enable_adapters()
    _tell_enabled(True, worker, as_json=as_json)


def disable(
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Have a worker answer every new request with the base model alone, until `enable`.

    JSON: {adapters_enabled}.
    """
    with open_client(store=store, worker=worker, tenant=tenant) as client:
        client.worker.disable_adapters()
    _tell_enabled(False, worker, as_json=as_json)


def _tell_enabled(enabled: bool, worker: str, *, as_json: bool) -> None:
    if as_json:
        print_document({"adapters_enabled": enabled})
    else:
        print(f"worker {worker} serves adapters" if enabled else f"worker {worker} serves the base model alone")


def _each(references: list[str], act: WorkerAct, store: str, worker: str, tenant: str, *, as_json: bool) -> None:
    for reference in references:
        check_reference(reference)
    with open_client(store=store, worker=worker, tenant=tenant) as client:
        each(references, lambda reference: act(client, full_reference(client, reference)), as_json=as_json)


def _took(result: LoadResult) -> str:
    took = result.timings
    stages = {"resolve": took.resolve_s, "fetch": took.fetch_s, "wait": took.wait_s, "activate": took.activate_s}
    parts = ", ".join(f"{name} {human_duration(seconds)}" for name, seconds in stages.items())
    return f"took {human_duration(took.total_s)}: {parts}"
