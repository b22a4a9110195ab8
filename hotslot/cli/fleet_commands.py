"""Commands on the fleet: workers, placements, top."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from hotslot.cli import options
from hotslot.cli.digests import full_base, full_reference
from hotslot.cli.fleet_readings import FleetReader, Reading
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, open_client
from hotslot.cli.output import FormOption, ListForm, QuietOption, WatchOption, console, print_event, print_list, show
from hotslot.cli.rendering import placements_table, workers_table

PoolOption = Annotated[str, typer.Option("--base", metavar="NAME", help="Show only workers of this base model.")]


def workers(
    base: PoolOption = "",
    form: FormOption = ListForm.TABLE,
    quiet: QuietOption = False,
    watch: WatchOption = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """List the workers.

    JSON: {workers: […]}.
    """
    with open_client(store=store, tenant=tenant) as client:
        found = list(client.placement.list_workers(base_model=full_base(client, base)))
    print_list(
        form,
        {"workers": found},
        [worker.worker_id for worker in found],
        lambda wide: workers_table(found, datetime.now(UTC)),
        nothing="no workers; `hotslot up` or `python -m worker_service` starts one",
    )


def placements(
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", metavar="REF", help="List only placements of this version.")
    ] = "",
    worker_id: Annotated[str, typer.Option("--worker-id", help="List only placements on this worker.")] = "",
    form: FormOption = ListForm.TABLE,
    quiet: QuietOption = False,
    watch: WatchOption = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """List placements: each version with its workers and tiers.

    JSON: {placements: […]}.
    """
    with open_client(store=store, tenant=tenant) as client:
        digest = client.store.resolve(full_reference(client, adapter)).version.digest if adapter else ""
        found = list(client.placement.list_placements(adapter_digest=digest, worker_id=worker_id))
    names = dict.fromkeys(placement.adapter or placement.adapter_digest for placement in found)
    print_list(
        form,
        {"placements": found},
        list(names),
        lambda wide: placements_table(found, wide=wide),
        nothing="no placements; workers load an adapter when a request names it",
    )


def top(
    base: PoolOption = "",
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Time between refreshes.")
    ] = 1.0,
    count: Annotated[int, typer.Option("--count", help="End after N refreshes; 0: never.")] = 0,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Watch workers and placements live, until Ctrl-C.

    While the store does not answer, the last view stays and says so.

    JSON lines: {event: "snapshot", time, workers, placements, tokens_per_s (by worker_id), stale (why it is the last
    one that could be read, or empty)}.
    """
    with open_client(store=store, tenant=tenant) as client:
        reader = FleetReader(client.placement.client, full_base(client, base), use_proxy=options.uses_proxy())
        try:
            with Live(console=console(), auto_refresh=False, screen=False, transient=not as_json) as live:
                shown = 0
                while True:
                    reading = client.loop.run(reader.read())
                    if as_json:
                        print_event("snapshot", reading)
                    else:
                        live.update(view(reading, datetime.now(UTC)), refresh=True)
                    shown += 1
                    if shown == count:
                        break
                    time.sleep(interval_s)
        finally:
            client.loop.run(reader.close())
    if not as_json:
        show(view(reading, datetime.now(UTC)))


def view(reading: Reading, now: datetime) -> Group:
    """Screen of `hotslot top`."""
    found, rates = reading.workers, reading.tokens_per_s
    running = sum(worker.load.running_sequences for worker in found)
    headline = f"{now:%H:%M:%S} UTC  {len(found)} workers  {running} running  {sum(rates.values()):.1f} tokens/s"
    parts: list[RenderableType] = [Text(headline, style="bold")]
    if reading.stale:
        parts.append(Text(f"as of {reading.time:%H:%M:%S} UTC: {reading.stale}", style="bold red"))
    return Group(*parts, "", workers_table(found, now, rates), "", placements_table(reading.placements))
