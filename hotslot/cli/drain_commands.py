"""Commands that take workers out of service and back: drain, undrain."""

from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.options import JsonOption, StoreOption, WorkerOption, checked_endpoint, open_client
from hotslot.cli.output import each
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.errors import FieldViolation, InvalidRequestError

WorkersArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WORKER]…", help="Workers by HOST:PORT or by their id; without one, that of --worker."),
]


def drain(
    workers: WorkersArgument = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for running requests.")
    ] = 600,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    as_json: JsonOption = False,
) -> None:
    """Let a worker take no new requests, and wait until the running ones have finished.

    It stays so, also when the wait is too short, until `hotslot undrain`. JSON: {drained}; of several a list.
    """

    def act(endpoint: str) -> tuple[dict[str, bool], str]:
        with open_client(store=store, worker=endpoint) as client:
            client.worker.drain(timeout_s=timeout_s)
        return {"drained": True}, f"worker {endpoint} is drained"

    each(endpoints_of(workers or [], store, worker), act, as_json=as_json)


def undrain(
    workers: WorkersArgument = None,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    as_json: JsonOption = False,
) -> None:
    """Let a drained worker take requests again; a drain that still waits ends.

    JSON: {drained}; of several a list.
    """

    def act(endpoint: str) -> tuple[dict[str, bool], str]:
        with open_client(store=store, worker=endpoint) as client:
            client.worker.undrain()
        return {"drained": False}, f"worker {endpoint} takes requests"

    each(endpoints_of(workers or [], store, worker), act, as_json=as_json)


def endpoints_of(workers: list[str], store: str, default: str) -> list[str]:
    """Endpoints of workers that are named by these or by their ids, or by the beginning of one."""
    if all(":" in text for text in workers):
        return [checked_endpoint(text, "WORKER") for text in workers] or [default]
    with open_client(store=store) as client:
        return [text if ":" in text else _endpoint(client, text) for text in workers]


def _endpoint(client: BlockingHotslotClient, worker_id: str) -> str:
    known = {worker.worker_id: worker.endpoint for worker in client.placement.list_workers()}
    found = [key for key in known if key == worker_id] or [key for key in known if key.startswith(worker_id)]
    if len(found) == 1:
        return known[found[0]]
    said = f"fits {', '.join(found)}" if found else "is no worker; `hotslot workers` lists them"
    raise InvalidRequestError([FieldViolation("WORKER", f"{worker_id!r} {said}")])
