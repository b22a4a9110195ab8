"""Commands that show what the store has: ls, show, history."""

from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from hotslot.cli import options
from hotslot.cli.catalog_commands import parse_labels
from hotslot.cli.digests import check_reference, full_base, full_reference
from hotslot.cli.options import (
    JsonOption,
    ReferenceArgument,
    ReferencesArgument,
    StoreOption,
    TenantOption,
    open_client,
)
from hotslot.cli.output import FormOption, ListForm, QuietOption, WatchOption, each, print_list, rendered, say
from hotslot.cli.rendering import (
    adapter_rows,
    adapters_table,
    details_table,
    modules_table,
    version_rows,
    versions_table,
)
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.contract.catalog import Version
from hotslot.errors import TagNotFoundError
from hotslot.references import parse_reference

LabelFilter = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="KEY=VALUE", help="List only adapters with this label; may be repeated."),
]


def ls(
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="List only adapters whose names start with PREFIX.")
    ] = "",
    base: Annotated[str, typer.Option("--base", metavar="NAME", help="List only adapters for this base model.")] = "",
    label: LabelFilter = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="List adapters that can be undeleted, too.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, metavar="N", help="At most N adapters; 0: all.")] = 0,
    form: FormOption = ListForm.TABLE,
    quiet: QuietOption = False,
    watch: WatchOption = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """List the adapters by name; pages are fetched as they are needed.

    JSON: {adapters: […], more: whether --limit left some out}.
    """
    labels = parse_labels(label or [])
    with open_client(store=store, tenant=tenant) as client:
        base = full_base(client, base)
        found = client.store.list_adapters(base_model=base, labels=labels, name_prefix=prefix, show_deleted=deleted)
        with closing(found):
            adapters = list(islice(found, limit + 1 if limit else None))
    more = bool(limit) and len(adapters) > limit
    adapters = adapters[:limit] if limit else adapters
    print_list(
        form,
        {"adapters": adapters, "more": more},
        [adapter.name for adapter in adapters],
        lambda wide: adapters_table(adapters, datetime.now(UTC), wide=wide),
        nothing="no adapters; `hotslot push DIR NAME` adds one",
    )
    if more and form != ListForm.JSON:
        say(f"only the first {limit}; raise --limit, or name a PREFIX")


def show(
    references: ReferencesArgument,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Show an adapter, the version that the reference stands for with all of its modules, and the other versions.

    JSON: {adapter, version (null when nothing is tagged latest), versions}; of several a list.
    """
    for reference in references:
        check_reference(reference)
    with open_client(store=store, tenant=tenant) as client:
        each(references, lambda reference: _shown(client, reference), as_json=as_json)


def history(
    reference: ReferenceArgument,
    form: FormOption = ListForm.TABLE,
    quiet: QuietOption = False,
    watch: WatchOption = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """List the versions of a name, the newest one first.

    JSON: {versions: […]}.
    """
    check_reference(reference)
    with open_client(store=store, tenant=tenant) as client:
        name = parse_reference(full_reference(client, reference)).name
        versions = list(client.store.list_versions(name))
    print_list(
        form,
        {"versions": versions},
        [f"{name}@{version.digest}" for version in versions],
        lambda wide: versions_table(versions, datetime.now(UTC), wide=wide),
        nothing=f"{name} has no versions",
    )


def _shown(client: BlockingHotslotClient, reference: str) -> tuple[dict[str, Any], str]:
    parsed = parse_reference(full_reference(client, reference))
    adapter = client.store.get(parsed.name)
    version: Version | None = None
    try:
        version = client.store.resolve(str(parsed)).version
    except TagNotFoundError:
        if ":" in reference:
            raise
    versions = list(client.store.list_versions(parsed.name))
    now = datetime.now(UTC)
    parts: list[RenderableType] = [details_table(adapter_rows(adapter, now)), versions_table(versions, now)]
    if version is not None:
        parts.insert(1, details_table(version_rows(version, now)))
        parts.append(modules_table(version))
    return {"adapter": adapter, "version": version, "versions": versions}, rendered(*parts)
