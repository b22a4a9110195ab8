"""The command on shares: share, and share ls."""

from datetime import UTC, datetime
from itertools import chain
from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, open_client
from hotslot.cli.output import print_document, say, show
from hotslot.cli.rendering import shares_table
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.contract.sharing import AdapterShare
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.references import parse_name

LISTING = "ls"


def share(
    name: Annotated[
        str, typer.Argument(metavar="NAME|ls", help="The adapter, with all of its versions and tags; ls lists shares.")
    ],
    tenants: Annotated[
        list[str],
        typer.Option("--with", metavar="TENANT", help="Tenant that may read and use it; several times, or by commas."),
    ] = [],  # noqa: B006 (typer reads it)
    with_all: Annotated[bool, typer.Option("--with-all", help="Every tenant may, also those to come.")] = False,
    revoke: Annotated[
        bool, typer.Option("--revoke", help="End the share with these tenants; with each where none is named.")
    ] = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Let other tenants read and use an adapter, but not change it; they name it OWNER~NAME.

    JSON: {share: {adapter, tenants, all_tenants, update_time}, revision}; of ls {shares, shared_with_me}.
    """
    named = [part for text in tenants for part in text.split(",") if part]
    if name == LISTING and not (named or with_all or revoke):
        with open_client(store=store, tenant=tenant) as client:
            _list(client, as_json=as_json)
        return
    parse_name(name)
    if not (named or with_all or revoke):
        raise InvalidRequestError([FieldViolation("--with", "name the tenant to share it with, or say --with-all")])
    with open_client(store=store, tenant=tenant) as client:
        change = client.store.unshare if revoke else client.store.share
        shared = change(name, named, all_tenants=with_all)
    if as_json:
        print_document({"share": shared, "revision": client.revision})
    else:
        print(f"{name} is shared with {shared_with(shared)}")


def shared_with(shared: AdapterShare) -> str:
    """Tenants of a share, in words."""
    return ", ".join(chain(["all"] if shared.all_tenants else [], shared.tenants)) or "no tenant"


def _list(client: BlockingHotslotClient, *, as_json: bool) -> None:
    shares, others = list(client.store.list_shares()), list(client.store.list_shared_adapters())
    if as_json:
        print_document({"shares": shares, "shared_with_me": others})
    elif shares or others:
        now = datetime.now(UTC)
        rows = [(shared.adapter, shared_with(shared), shared.update_time) for shared in shares]
        show(shares_table([*rows, *((adapter.name, "this tenant", adapter.update_time) for adapter in others)], now))
    else:
        say("nothing is shared; `hotslot share NAME --with TENANT` does it")
