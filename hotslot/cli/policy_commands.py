"""Commands on adapters' policies: set, show, ls, rm."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.command_line import Command, Commands
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, open_client
from hotslot.cli.output import FormOption, ListForm, QuietOption, WatchOption, print_document, print_list
from hotslot.cli.output import show as show_parts
from hotslot.cli.rendering import policies_table
from hotslot.cli.retention_commands import KeepOption, OlderOption, parse_period
from hotslot.contract.catalog import AdapterPolicy
from hotslot.errors import PolicyNotFoundError
from hotslot.references import parse_name

PolicyName = Annotated[str, typer.Argument(metavar="NAME", help="The adapter; a policy is for all of its versions.")]
EtagOption = Annotated[str, typer.Option(help="Etag that the policy must still have.")]

app = typer.Typer(
    cls=Commands, help="Policies of adapters: the number of workers that hold one, and pins.", no_args_is_help=True
)


@app.command("set", cls=Command)
def set_(
    name: PolicyName,
    least: Annotated[
        int | None,
        typer.Option("--min", min=0, metavar="N", help="At least N workers share the adapter; 0: as demand has it."),
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", min=0, metavar="N", help="At most N workers; 0: no bound.")
    ] = None,
    pinned: Annotated[
        bool | None, typer.Option("--pin/--no-pin", help="Keep it in memory on --min workers before a request asks.")
    ] = None,
    keep: KeepOption = None,
    older_than: OlderOption = None,
    etag: EtagOption = "",
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Set an adapter's policy; parts that are not named stay as they are.

    Retention removes versions that are not among the newest of --keep, once they have had no tag for --older-than.

    JSON: {policy, revision}.
    """
    parse_name(name)
    untagged_ttl_s = parse_period(older_than, "--older-than")
    with open_client(store=store, tenant=tenant) as client:
        before: AdapterPolicy | None = None
        with suppress(PolicyNotFoundError):
            before = client.store.get_policy(name)
        policy = client.store.set_policy(
            name,
            min_replicas=least if least is not None else before.min_replicas if before else 0,
            max_replicas=most if most is not None else before.max_replicas if before else 0,
            pinned=pinned if pinned is not None else bool(before and before.pinned),
            keep_versions=keep,
            untagged_ttl_s=untagged_ttl_s,
            # The parts that are kept were read just now: no other operator's change is to be undone.
            etag=etag or (before.etag if before else ""),
        )
    if as_json:
        print_document({"policy": policy, "revision": client.revision})
    else:
        _show(policy)


@app.command("show", cls=Command)
def show(
    name: PolicyName,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Show an adapter's policy.

    JSON: {policy}.
    """
    parse_name(name)
    with open_client(store=store, tenant=tenant) as client:
        policy = client.store.get_policy(name)
    if as_json:
        print_document({"policy": policy})
    else:
        _show(policy)


@app.command("ls", cls=Command)
def ls(
    form: FormOption = ListForm.TABLE,
    quiet: QuietOption = False,
    watch: WatchOption = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """List the policies by adapter.

    JSON: {policies: […]}.
    """
    with open_client(store=store, tenant=tenant) as client:
        policies = list(client.store.list_policies())
    print_list(
        form,
        {"policies": policies},
        [policy.adapter for policy in policies],
        lambda wide: policies_table(policies, datetime.now(UTC)),
        nothing="no policies; `hotslot policy set NAME` makes one",
    )


@app.command("rm", cls=Command)
def rm(
    name: PolicyName,
    etag: EtagOption = "",
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Remove an adapter's policy; the defaults hold again.

    JSON: {removed: "policy", adapter, revision}.
    """
    parse_name(name)
    with open_client(store=store, tenant=tenant) as client:
        client.store.delete_policy(name, etag=etag)
    if as_json:
        print_document({"removed": "policy", "adapter": name, "revision": client.revision})
    else:
        print(f"removed the policy of {name}")


def _show(policy: AdapterPolicy) -> None:
    show_parts(policies_table([policy], datetime.now(UTC)))
