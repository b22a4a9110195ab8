"""Commands on the fleet: workers, placements, top."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from client.blocking import BlockingHotslotClient, BlockingWorkerClient
from client.cli import options
from client.cli.options import JsonOption, StoreOption, TenantOption, open_client
from client.cli.output import console, print_document, print_event, say, show
from client.cli.rendering import placements_table, workers_table
from client.types.placement import Placement, Worker
from shared.errors import HotslotError

PoolOption = Annotated[str, typer.Option("--base", metavar="NAME", help="Only workers of this base model.")]


def workers(
    base: PoolOption = "",
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """List the workers.

    JSON: {workers: […]}.
    """
    with open_client(store=store, tenant=tenant) as client:
        found = list(client.placement.list_workers(base_model=base))
    if as_json:
        print_document({"workers": found})
    elif found:
        show(workers_table(found, datetime.now(UTC)))
    else:
        say("no workers; `hotslot up` or `python -m worker_service` starts one")


def placements(
    adapter: Annotated[str, typer.Option("--adapter", "-a", metavar="REF", help="Only this version.")] = "",
    worker_id: Annotated[str, typer.Option("--worker-id", help="Only this worker.")] = "",
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """List which version is on which worker, in which tier.

    JSON: {placements: […]}.
    """
    with open_client(store=store, tenant=tenant) as client:
        digest = client.store.resolve(adapter).version.digest if adapter else ""
        found = list(client.placement.list_placements(adapter_digest=digest, worker_id=worker_id))
    if as_json:
        print_document({"placements": found})
    elif found:
        show(placements_table(found))
    else:
        say("no placements; workers load an adapter when a request names it")


def top(
    base: PoolOption = "",
    interval_s: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.1)] = 1.0,
    count: Annotated[int, typer.Option("--count", help="End after so many refreshes; 0: never.")] = 0,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Watch workers and placements live, until Ctrl-C.

    JSON lines: {event: "snapshot", time, workers, placements, tokens_per_s (by worker_id)}.
    """
    with open_client(store=store, tenant=tenant) as client:
        meter = TokenMeter()
        try:
            with Live(console=console(), auto_refresh=False, screen=False, transient=not as_json) as live:
                shown = 0
                while True:
                    found, held = _snapshot(client, base)
                    rates = meter.rates(found, time.monotonic())
                    if as_json:
                        snapshot = {"time": datetime.now(UTC), "workers": found, "placements": held}
                        print_event("snapshot", {**snapshot, "tokens_per_s": rates})
                    else:
                        live.update(_view(found, held, rates), refresh=True)
                    shown += 1
                    if shown == count:
                        break
                    time.sleep(interval_s)
        finally:
            meter.close()
    if not as_json:
        show(_view(found, held, rates))


class TokenMeter:
    """Tokens per second of each worker, from the counters that they report themselves."""

    def __init__(self) -> None:
        self._clients: dict[str, BlockingWorkerClient] = {}
        self._last: dict[str, tuple[float, int]] = {}

    def rates(self, workers: list[Worker], now_s: float) -> dict[str, float]:
        """The rate since the last call; a worker that does not answer, or is new, has none."""
        rates: dict[str, float] = {}
        for worker in workers:
            try:
                tokens = self._client(worker.endpoint).status().generated_tokens
            except HotslotError:
                continue
            before = self._last.get(worker.worker_id)
            self._last[worker.worker_id] = (now_s, tokens)
            if before is not None and now_s > before[0]:
                rates[worker.worker_id] = (tokens - before[1]) / (now_s - before[0])
        return rates

    def _client(self, endpoint: str) -> BlockingWorkerClient:
        client = self._clients.get(endpoint)
        if client is None:
            client = self._clients[endpoint] = BlockingWorkerClient(endpoint)
        return client

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()


def _snapshot(client: BlockingHotslotClient, base: str) -> tuple[list[Worker], list[Placement]]:
    found = list(client.placement.list_workers(base_model=base))
    ids = {worker.worker_id for worker in found}
    held = [p for p in client.placement.list_placements() if p.worker_id in ids]
    return found, held


def _view(found: list[Worker], held: list[Placement], rates: dict[str, float]) -> Group:
    now = datetime.now(UTC)
    running = sum(worker.load.running_sequences for worker in found)
    headline = f"{now:%H:%M:%S} UTC  {len(found)} workers  {running} running  {sum(rates.values()):.1f} tokens/s"
    return Group(Text(headline, style="bold"), "", workers_table(found, now, rates), "", placements_table(held))
