"""The command on retention: prune; and the options that policies share with it."""

import re
from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.failures import report
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, open_client
from hotslot.cli.output import print_document, say
from hotslot.cli.rendering import human_size, short_digest
from hotslot.contract.catalog import PruneReport
from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError
from hotslot.references import parse_name

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")

KeepOption = Annotated[
    int | None, typer.Option("--keep", min=0, metavar="N", help="Leave the newest N versions, whatever their age.")
]
OlderOption = Annotated[
    str | None,
    typer.Option(
        "--older-than", metavar="TIME", help="Take only versions without a tag for so long: 30m, 12h, 7d or 2w."
    ),
]


def prune(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Adapters; without one, all that have a retention.")
    ] = None,
    keep: KeepOption = None,
    older_than: OlderOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Remove nothing: only tell.")] = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Remove the versions that retention does not keep, by the adapters' policies or by these options.

    A version with a tag stays, and so does one that was asked for by its digest a moment ago.

    JSON: {versions: […], num_waiting, num_kept, more, dry_run}.
    """
    untagged_ttl_s = parse_period(older_than, "--older-than")
    for name in names or []:
        parse_name(name)
    if not names and (keep is not None or older_than is not None):
        problem = "name the adapters: --keep and --older-than are for these alone"
        raise InvalidRequestError([FieldViolation("NAME", problem)])
    reports, code = [], 0
    with open_client(store=store, tenant=tenant) as client:
        for name in names or [""]:
            try:
                found = client.store.prune(name, keep_versions=keep, untagged_ttl_s=untagged_ttl_s, dry_run=dry_run)
            except HotslotError as exc:
                # The user must hear of what the names before it lost.
                if len(names or ()) < 2:
                    raise
                code = code or report(exc, as_json=as_json)
                continue
            reports.append(found)
    _print(reports, dry_run=dry_run, as_json=as_json)
    if code:
        raise typer.Exit(code)


def parse_period(text: str | None, option: str) -> float | None:
    """Seconds of a period such as `7d`; raises InvalidRequestError."""
    if text is None:
        return None
    found = _PERIOD.fullmatch(text)
    if found is None:
        problem = f"found {text!r}, expected a number and a unit, such as 30m, 12h, 7d or 2w"
        raise InvalidRequestError([FieldViolation(option, problem)])
    return float(found[1]) * _UNITS_S[found[2]]


def _print(reports: list[PruneReport], *, dry_run: bool, as_json: bool) -> None:
    versions = [version for report in reports for version in report.versions]
    num_waiting, num_kept = (sum(getattr(r, name) for r in reports) for name in ("num_waiting", "num_kept"))
    more = any(report.more for report in reports)
    if as_json:
        counts = {"num_waiting": num_waiting, "num_kept": num_kept, "more": more, "dry_run": dry_run}
        print_document({"versions": versions, **counts})
        return
    for version in versions:
        print(f"{version.adapter}@{short_digest(version.digest)}  {human_size(version.weights_size_bytes)}")
    verb = "would be removed" if dry_run else "removed"
    size = human_size(sum(version.weights_size_bytes for version in versions))
    waiting = f", {num_waiting} wait for the store's grace" if num_waiting else ""
    say(f"{len(versions)} {verb} ({size}), {num_kept} kept{waiting}{'; there are more' if more else ''}")
