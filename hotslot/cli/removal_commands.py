"""Commands that take from the store, and bring back: rm, undelete."""

from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.digests import check_reference, full_reference
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, open_client
from hotslot.cli.output import ask, each, say
from hotslot.cli.rendering import human_moment
from hotslot.contract.catalog import Adapter
from hotslot.references import parse_name, parse_reference


def rm(
    references: Annotated[
        list[str],
        typer.Argument(metavar="REF…", help="name removes the adapter, name:tag the tag, name@digest the version."),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove a tagged version too, with its tags.")] = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Remove an adapter, a tag or a version.

    JSON: {removed: "adapter" | "tag" | "version", reference, purge_time (of an adapter), revision}; of several a list.
    """

    def act(reference: str) -> tuple[dict[str, object], str]:
        kind, parsed = _kind(reference), parse_reference(full_reference(client, reference))
        adapter = client.store.get(parsed.name)
        if not yes:
            ask(f"Remove the {kind} {reference}{_extent(adapter) if kind == 'adapter' else ''}?")
        purge_time = None
        if parsed.digest is not None:
            client.store.delete_version(parsed.name, parsed.digest, force=force)
        elif kind == "tag":
            client.store.delete_tag(parsed.name, str(parsed.tag))
        else:
            purge_time = client.store.delete_adapter(parsed.name).purge_time
        if purge_time is not None and not as_json:
            say(f"`hotslot undelete {parsed.name}` brings it back until {human_moment(purge_time)}")
        told: dict[str, object] = {"removed": kind, "reference": reference, "purge_time": purge_time}
        told["revision"] = client.revision
        return told, f"removed the {kind} {reference}"

    for reference in references:
        check_reference(reference)
    with open_client(store=store, tenant=tenant) as client:
        each(references, act, as_json=as_json)


def undelete(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Adapters that `ls --deleted` lists as deleted.")],
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Bring a removed adapter back as it was.

    JSON: {adapter, revision}; of several a list.
    """

    def act(name: str) -> tuple[dict[str, object], str]:
        adapter = client.store.undelete_adapter(name)
        return {"adapter": adapter, "revision": client.revision}, f"{name} is back{_extent(adapter)}"

    for name in names:
        parse_name(name)
    with open_client(store=store, tenant=tenant) as client:
        each(names, act, as_json=as_json)


def _kind(reference: str) -> str:
    return "version" if "@" in reference else "tag" if ":" in reference else "adapter"


def _extent(adapter: Adapter) -> str:
    versions = f"{adapter.num_versions} version" + ("s" if adapter.num_versions != 1 else "")
    tags = ", ".join(tag.name for tag in adapter.tags)
    return f" with {versions}" + (f" and the tags {tags}" if tags else "")
