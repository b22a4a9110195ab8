"""Commands on one worker: status, load, unload, pin, unpin, drain, undrain."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.options import JsonOption, ReferenceArgument, TenantOption, WorkerOption, open_client
from hotslot.cli.output import print_document, say, show
from hotslot.cli.rendering import details_table, human_duration, loaded_table, short_digest, status_rows


def status(
    worker: WorkerOption = options.WORKER, tenant: TenantOption = options.TENANT, as_json: JsonOption = False
) -> None:
    """Show a worker's status and the adapters that it holds.

    JSON: {status, adapters: {adapters, default_adapters, adapters_enabled}}.
    """
    with open_client(worker=worker, tenant=tenant) as client:
        found = client.worker.status()
        held = client.worker.list_adapters()
    if as_json:
        print_document({"status": found, "adapters": held})
        return
    now = datetime.now(UTC)
    defaults = ", ".join(f"{d.reference}={d.weight:g}" for d in held.default_adapters) or "the base model"
    adapters = ("default", defaults if held.adapters_enabled else "adapters are disabled")
    tables = [loaded_table(held.adapters, now)] if held.adapters else []
    show(details_table([*status_rows(found, now), adapters]), *tables)


def load(
    reference: ReferenceArgument,
    host_only: Annotated[bool, typer.Option("--host-only", help="Load into host memory only, not into slots.")] = False,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Bring the version that a reference stands for now into a worker's slots.

    JSON: {adapter, previous_digest, timings}.
    """
    with open_client(worker=worker, tenant=tenant) as client:
        result = client.worker.load(reference, host_only=host_only)
    if as_json:
        print_document(result)
        return
    was = f", was {short_digest(result.previous_digest)}" if result.previous_digest else ""
    took = result.timings
    print(f"{reference} is {result.adapter.digest} in tier {result.adapter.tier}{was}")
    stages = {
        "resolve": took.resolve_s,
        "fetch": took.fetch_s,
        "wait": took.wait_s,
        "activate": took.activate_s,
    }
    parts = ", ".join(f"{name} {human_duration(seconds)}" for name, seconds in stages.items())
    say(f"took {human_duration(took.total_s)}: {parts}")


def unload(
    reference: ReferenceArgument,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for the requests that use it.")
    ] = 60,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Remove an adapter from a worker once the requests that use it have finished.

    JSON: {digest}.
    """
    with open_client(worker=worker, tenant=tenant) as client:
        digest = client.worker.unload(reference, timeout_s=timeout_s)
    if as_json:
        print_document({"digest": digest})
    else:
        print(f"unloaded {reference} ({digest})")


def pin(
    reference: ReferenceArgument,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Keep an adapter in a worker's slots; loads it first if need be.

    JSON: {adapter}.
    """
    with open_client(worker=worker, tenant=tenant) as client:
        adapter = client.worker.pin(reference)
    if as_json:
        print_document({"adapter": adapter})
    else:
        print(f"pinned {reference} ({adapter.digest})")


def unpin(
    reference: ReferenceArgument,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Let an adapter be evicted again.

    JSON: {adapter}.
    """
    with open_client(worker=worker, tenant=tenant) as client:
        adapter = client.worker.unpin(reference)
    if as_json:
        print_document({"adapter": adapter})
    else:
        print(f"unpinned {reference} ({adapter.digest})")


def drain(
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for running requests.")
    ] = 600,
    worker: WorkerOption = options.WORKER,
    as_json: JsonOption = False,
) -> None:
    """Let a worker take no new requests, and wait until the running ones have finished.

    It stays so, also when the wait is too short, until `hotslot undrain`. JSON: {drained}.
    """
    with open_client(worker=worker) as client:
        client.worker.drain(timeout_s=timeout_s)
    _tell_drained(True, worker, as_json=as_json)


def undrain(worker: WorkerOption = options.WORKER, as_json: JsonOption = False) -> None:
    """Let a drained worker take requests again; a drain that still waits ends.

    JSON: {drained}.
    """
    with open_client(worker=worker) as client:
        client.worker.undrain()
    _tell_drained(False, worker, as_json=as_json)


def _tell_drained(drained: bool, worker: str, *, as_json: bool) -> None:
    if as_json:
        print_document({"drained": drained})
    else:
        print(f"worker {worker} is drained" if drained else f"worker {worker} takes requests")
