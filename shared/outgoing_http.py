"""Outgoing HTTP of services: a client whose connections go to addresses that were checked after a name was resolved.

A name that passed a check may stand for another address a moment later. So the check is where the connection is made:
the address that was judged is the one that is dialled, for each connection anew, redirects included.
"""

import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import httpcore2
import httpx2

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Sequence[Address]]
"""Addresses of a host, as the system's resolver has them; raises OSError."""

_IPV4_IN_IPV6 = ip_network("64:ff9b::/96")
"""Addresses of NAT64, whose last four bytes are the IPv4 address that is reached (RFC 6052)."""


class PrivateAddressError(Exception):
    """A host whose addresses are all private, or this machine's, and not allowed."""


def resolved(host: str, port: int) -> Sequence[Address]:
    """Addresses that the system's resolver has for a host, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(sockaddr[0])) for *_, sockaddr in found]


def networks_of(names: Iterable[str]) -> tuple[Network, ...]:
    """Networks by their texts, as 10.1.0.0/16; raises ValueError."""
    return tuple(ip_network(name.strip()) for name in names)


def is_reachable(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """True for an address of the public Internet, or in a network that is allowed.

    An IPv6 address that carries one of IPv4 is judged by that: the connection ends there.
    """
    networks = tuple(allowed)
    return all(
        _is_public(judged) or any(judged.version == n.version and judged in n for n in networks)
        for judged in _judged(address)
    )


def _judged(address: Address) -> tuple[Address, ...]:
    if isinstance(address, IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _IPV4_IN_IPV6:
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    carried = [address.sixtofour, *(address.teredo or ())]
    return address, *(found for found in carried if found is not None)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and (address.is_site_local or address.scope_id is not None):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class CheckedBackend(httpcore2.NetworkBackend):
    """Connections to addresses that may be reached, and to no other."""

    def __init__(
        self, allowed: Iterable[Network] = (), literal_hosts: Iterable[str] = (), resolve: Resolve = resolved
    ) -> None:
        """`literal_hosts` are addresses that the operator wrote down as such: they are what they say."""
        self._allowed = tuple(allowed)
        self._literal_hosts = frozenset(host for host in literal_hosts if _is_address(host))
        self._resolve = resolve
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address that answers; raises PrivateAddressError and httpcore2.ConnectError."""
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError) as exc:
            raise httpcore2.ConnectError(f"{host} has no address") from exc
        reachable = [a for a in found if host in self._literal_hosts or is_reachable(a, self._allowed)]
        if found and not reachable:
            raise PrivateAddressError(f"{host!r} has a private address, or one of this machine")
        failure: httpcore2.ConnectError | httpcore2.ConnectTimeout = httpcore2.ConnectError(f"{host} has no address")
        for address in reachable:
            try:
                return self._sockets.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                failure = exc
        raise failure


class OutgoingClient(httpx2.Client):
    """HTTP client that follows no redirects, and connects as its backend allows.

    Where the environment names a proxy, the proxy makes the connection and checks what it may reach.
    """

    def __init__(self, backend: CheckedBackend, timeout_s: float, ca_file: Path | None = None) -> None:
        """Servers' certificates must lead to one that is known publicly, or to one in `ca_file`."""
        context = httpx2.create_ssl_context()
        if ca_file is not None:
            context.load_verify_locations(ca_file)
        super().__init__(timeout=timeout_s, follow_redirects=False, verify=context)
        # httpx2 has no argument for the backend of its pool; `tests/unit/shared/test_outgoing_http.py` holds the hook.
        direct = self._transport
        assert isinstance(direct, httpx2.HTTPTransport)
        direct._pool = httpcore2.ConnectionPool(ssl_context=context, network_backend=backend)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
