"""Commands on the fleet: workers, placements, top."""

import itertools
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from hotslot.cli import options
from hotslot.cli.digests import full_base, full_reference
from hotslot.cli.fleet_readings import FleetReader, Reading
from hotslot.cli.interrupts import interruptible_pauses
from hotslot.cli.live_screen import follow
from hotslot.cli.options import JsonOption, LimitOption, StoreOption, TenantOption, open_client
from hotslot.cli.orders import WorkerOrder, first_of, ordered_placements, ordered_workers
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
    count: Annotated[int, typer.Option("--count", min=0, help="End after N refreshes; 0: never.")] = 0,
    order: Annotated[WorkerOrder, typer.Option("--sort", help="Order of the workers.")] = WorkerOrder.NAME,
    limit: LimitOption = 0,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Watch workers and placements live, until Ctrl-C or q; on a terminal, keys sort and scroll.

    While the store does not answer, the last view stays and says so.

    JSON lines: {event: "snapshot", time, workers, placements, tokens_per_s (by worker_id), stale (why it is the last
    one that could be read, or empty)}.
    """
    with open_client(store=store, tenant=tenant) as client:
        calls = options.channel_options(tenant, store)
        reader = FleetReader(client.placement.client, full_base(client, base), calls)

        def draw(chosen: str) -> RenderableType:
            return view(client.loop.run(reader.read()), datetime.now(UTC), WorkerOrder(chosen), limit)

        try:
            if console().is_terminal and not as_json:
                follow(draw, order.value, [one.value for one in WorkerOrder], interval_s, count)
                return
            with interruptible_pauses() as pause:
                for number in itertools.count(1):
                    if as_json:
                        print_event("snapshot", _cut(client.loop.run(reader.read()), order, limit))
                    else:
                        show(draw(order.value))
                        sys.stdout.flush()
                    if number == count:
                        break
                    pause(interval_s)
        finally:
            client.loop.run(reader.close())


def view(reading: Reading, now: datetime, order: WorkerOrder = WorkerOrder.NAME, limit: int = 0) -> Group:
    """Screen of `hotslot top`."""
    found, rates = reading.workers, reading.tokens_per_s
    running = sum(worker.load.running_sequences for worker in found)
    headline = f"{now:%H:%M:%S} UTC  {len(found)} workers  {running} running  {sum(rates.values()):.1f} tokens/s"
    parts: list[RenderableType] = [Text(headline, style="bold")]
    if reading.stale:
        parts.append(Text(f"as of {reading.time:%H:%M:%S} UTC: {reading.stale}", style="bold red"))
    workers_shown, more_workers = first_of(ordered_workers(found, order, rates), limit)
    placements_shown, more_placements = first_of(ordered_placements(reading.placements), limit)
    parts += ["", workers_table(workers_shown, now, rates), *([more_workers] if more_workers else [])]
    parts += ["", placements_table(placements_shown), *([more_placements] if more_placements else [])]
    return Group(*parts)


def _cut(reading: Reading, order: WorkerOrder, limit: int) -> Reading:
    """A reading with what a screen of it would list."""
    workers_shown, _ = first_of(ordered_workers(reading.workers, order, reading.tokens_per_s), limit)
    placements_shown, _ = first_of(ordered_placements(reading.placements), limit)
    return replace(reading, workers=workers_shown, placements=placements_shown)
