"""Commands that take from the store, and bring back: rm, undelete."""

from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, open_client
from hotslot.cli.output import ask, print_document, say
from hotslot.cli.rendering import human_moment
from hotslot.contract.catalog import Adapter
from hotslot.references import parse_name, parse_reference


def rm(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="name removes the adapter, name:tag the tag, name@digest the version.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove a tagged version too, with its tags.")] = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Remove an adapter, a tag or a version.

    JSON: {removed: "adapter" | "tag" | "version", reference, purge_time (of an adapter)}.
    """
    parsed = parse_reference(reference)
    kind = "version" if "@" in reference else "tag" if ":" in reference else "adapter"
    if kind == "adapter":
        parse_name(reference)
    with open_client(store=store, tenant=tenant) as client:
        adapter = client.store.get(parsed.name)
        if not yes:
            ask(f"Remove the {kind} {reference}{_extent(adapter) if kind == 'adapter' else ''}?")
        removed: Adapter | None = None
        if parsed.digest is not None:
            client.store.delete_version(parsed.name, parsed.digest, force=force)
        elif kind == "tag":
            client.store.delete_tag(parsed.name, str(parsed.tag))
        else:
            removed = client.store.delete_adapter(parsed.name)
    if as_json:
        purge_time = removed.purge_time if removed else None
        print_document({"removed": kind, "reference": reference, "purge_time": purge_time})
        return
    print(f"removed the {kind} {reference}")
    if removed is not None and removed.purge_time is not None:
        say(f"`hotslot undelete {parsed.name}` brings it back until {human_moment(removed.purge_time)}")


def undelete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An adapter that `ls --deleted` lists as deleted.")],
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Bring a removed adapter back as it was.

    JSON: {adapter}.
    """
    parse_name(name)
    with open_client(store=store, tenant=tenant) as client:
        adapter = client.store.undelete_adapter(name)
    if as_json:
        print_document({"adapter": adapter})
    else:
        print(f"{name} is back{_extent(adapter)}")


def _extent(adapter: Adapter) -> str:
    versions = f"{adapter.num_versions} version" + ("s" if adapter.num_versions != 1 else "")
    tags = ", ".join(tag.name for tag in adapter.tags)
    return f" with {versions}" + (f" and the tags {tags}" if tags else "")
