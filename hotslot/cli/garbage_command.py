"""The gc command: what a store has that nothing needs any more, and its removal."""

from collections import Counter
from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.fitted_table import FittedTable
from hotslot.cli.options import JsonOption, StoreOption, open_client
from hotslot.cli.output import print_document, say, show
from hotslot.cli.rendering import human_period, human_size, short_digest, table
from hotslot.contract.garbage import GarbageReport, Removal, RemovalKind

_BYTES_GO = (RemovalKind.BLOB, RemovalKind.OBJECT, RemovalKind.UPLOAD)
"""Kinds that take room by themselves; versions and adapters only keep blobs."""


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Remove nothing: say what would go, and why.")
    ] = False,
    show_waiting: Annotated[
        bool, typer.Option("--all", "-a", help="With --dry-run, show also what stays for now, and for how long.")
    ] = False,
    store: StoreOption = options.STORE,
    as_json: JsonOption = False,
) -> None:
    """Remove now what nothing needs any more, as the store does by itself from time to time.

    Versions that retention does not keep, deleted adapters, blobs, objects and uploads, once their grace is over. For
    operators. Of several stores it is the one that is called, its disk, and object storage unless another store has it.

    JSON: {removals: [{kind, reason, tenant, name, digest, size_bytes, age_s, wait_s}], objects_elsewhere, dry_run}.
    """
    with open_client(store=store) as client:
        report = client.store.collect_garbage(dry_run=dry_run)
    shown = report.removals if show_waiting else report.due
    if as_json:
        where = {"objects_elsewhere": report.objects_elsewhere, "dry_run": dry_run}
        print_document({"removals": shown, **where})
        return
    if shown:
        show(_table(shown))
    _say(report, dry_run=dry_run)


def _table(removals: tuple[Removal, ...]) -> FittedTable:
    found = table("KIND", "WHY", "TENANT", "NAME", "DIGEST", "SIZE", "SINCE", "GOES", right=("SIZE",))
    for removal in removals:
        found.add_row(
            removal.kind.value,
            removal.reason.value.replace("_", " "),
            removal.tenant,
            # Blobs and objects are called by their digests.
            removal.name if removal.kind not in (RemovalKind.BLOB, RemovalKind.OBJECT) else "",
            short_digest(removal.digest) if removal.digest else "",
            human_size(removal.size_bytes),
            _rough(removal.age_s),
            f"in {_rough(removal.wait_s)}" if removal.wait_s else "now",
        )
    return found


def _rough(seconds: float) -> str:
    unit_s = next((unit_s for unit_s in (86_400, 3_600, 60) if seconds >= unit_s), 1)
    return human_period(round(seconds / unit_s) * unit_s)


def _say(report: GarbageReport, *, dry_run: bool) -> None:
    due = report.due
    counts = Counter(removal.kind for removal in due)
    kinds = ", ".join(f"{counts[kind]} {kind.value}{'s' * (counts[kind] != 1)}" for kind in RemovalKind if counts[kind])
    size = human_size(sum(removal.size_bytes for removal in due if removal.kind in _BYTES_GO))
    num_waiting = len(report.removals) - len(due)
    waiting = f"; {num_waiting} more wait for their grace" if num_waiting else ""
    say(f"{kinds or 'nothing'} {'would go' if dry_run else 'removed'} ({size}){waiting}")
    if report.objects_elsewhere:
        say("object storage is another store's: it removes there what it has seen for long enough")
