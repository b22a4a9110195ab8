"""The quota command: use and limit of each quota of a tenant."""

from hotslot.cli import options
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, open_client
from hotslot.cli.output import print_document, show
from hotslot.cli.rendering import quota_table


def quota(
    store: StoreOption = options.STORE, tenant: TenantOption = options.TENANT, as_json: JsonOption = False
) -> None:
    """Show use and limit of each of the tenant's quotas.

    JSON: {tenant, usages: [{kind, limit, used}]}; a limit of null is no bound, and what is used may not be known.
    """
    with open_client(store=store, tenant=tenant) as client:
        found = client.store.quota()
    if as_json:
        print_document(found)
    else:
        show(quota_table(found))
