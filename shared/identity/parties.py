"""Decides, without I/O, which party a call is weighed as: inventing tenants, or opening connections, makes no parties.

Parties share what a server has; tenants share what their party has of it.
"""

import ipaddress
from contextvars import ContextVar
from urllib.parse import unquote

from hotslot.formats.principals import Scope
from hotslot.ids import NO_PARTY, PartyId, TenantId
from hotslot.rpc.tenant import MAX_PARTY_CHARS
from shared.identity.callers import Caller

PARTY: ContextVar[PartyId] = ContextVar("party", default=NO_PARTY)
"""Party of the call that is being handled."""
_IPV6_NETWORK = 64
"""Bits of an IPv6 address that a network has; its hosts choose the others."""


def party_of(caller: Caller | None, tenant: TenantId, peer: str, told: str | None = None) -> PartyId:
    """Party of a call from `peer`, as gRPC names it.

    Where callers are known it is the tenant, if that is one of the principal's own, else the principal. A worker, and a
    gateway, call for others: for the party that they tell, else for the tenant. Where callers are not known it is the
    address, as all else may be invented.
    """
    if caller is None:
        return PartyId(f"address {address_of(peer)}")
    if Scope.WORKER in caller.scopes or caller.via:
        return PartyId(told) if told and len(told) <= MAX_PARTY_CHARS else PartyId(f"tenant {tenant}")
    return PartyId(f"tenant {tenant}" if tenant in caller.tenants else f"principal {caller.name}")


def address_of(peer: str) -> str:
    """Address of a peer, or its network: `ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000`, `unix:/path`."""
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    if kind == "ipv4":
        return host
    return network_of(host) if kind == "ipv6" else kind


def network_of(host: str) -> str:
    """An IPv4 address as it is, and the network of an IPv6 address."""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _IPV6_NETWORK), strict=False).network_address)
