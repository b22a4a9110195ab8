"""Endpoints: host and port of what is listened on, dialled or advertised, parsed and checked in one place.

An IPv6 address stands in brackets, `[fd00::1]:7500`, since its own colons leave open where a port begins. Brackets
around an IPv4 address are taken, too, so that `[$(POD_IP)]:7500` is right in either kind of cluster.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import TypeAlias

from hotslot.errors import InvalidEndpointError

MAX_PORT = 65_535
IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_MAX_NAME = 253
_NUMBERS = re.compile(r"[0-9.]+")
_ZONE = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_PORT = re.compile(r"[0-9]{1,5}")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SOCKETS = ("unix", "unix-abstract")
_RESOLVERS = ("dns", "ipv4", "ipv6", *_SOCKETS)
_TAKEN_BY_GRPC = {*_RESOLVERS, "xds", "vsock", "passthrough", "google-c2p", "google-c2p-experimental"}
"""Names of resolvers: gRPC would read a host of such a name as one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Host and port; `str` gives host:port, with brackets around an IPv6 address."""

    host: str
    """A name or an address, without brackets; an IPv6 address may have its zone, `fe80::1%eth0`."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """Text that gRPC dials."""
        return f"dns:///{self}" if self.host.lower() in _TAKEN_BY_GRPC else str(self)

    @property
    def address(self) -> IPAddress | None:
        """The host as an address; None for a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def is_wildcard(self) -> bool:
        """True when the host stands for every interface: something to listen on, and nowhere to go to."""
        address = self.address
        mapped = getattr(address, "ipv4_mapped", None)
        return address is not None and (address.is_unspecified or (mapped is not None and mapped.is_unspecified))

    @property
    def is_loopback(self) -> bool:
        """True when the host is this machine, and what is sent there never leaves it."""
        address = self.address
        mapped = getattr(address, "ipv4_mapped", None) or address
        return self.host.lower().rstrip(".") == "localhost" or (mapped is not None and mapped.is_loopback)


@dataclass(frozen=True, slots=True)
class Target:
    """Address in a scheme that gRPC resolves: unix:, unix-abstract:, dns:, ipv4: or ipv6:."""

    target: str

    def __str__(self) -> str:
        return self.target


def parse_endpoint(text: str) -> Endpoint:
    """Host and port, port 0 included; raises InvalidEndpointError."""
    if (url := _URL.match(text)) is not None:
        raise InvalidEndpointError(text, f"expected host:port without {url[1]}://")
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise InvalidEndpointError(text, "expected [address]:port")
        return Endpoint(_bracketed(text, inside), _port(text, rest[1:]))
    host, colon, port = text.rpartition(":")
    if ":" in host:
        raise InvalidEndpointError(text, "an IPv6 address needs brackets: [fd00::1]:7400")
    if not colon:
        raise InvalidEndpointError(text, "expected host:port")
    if not host:
        raise InvalidEndpointError(
            text, "the host is missing: expected host:port, with [::] or 0.0.0.0 for all interfaces"
        )
    return Endpoint(_host(text, host), _port(text, port))


def listen_endpoint(text: str) -> Endpoint | Target:
    """Parse where a server listens: host:port, port 0 for a free one, or a Unix socket; raises InvalidEndpointError."""
    scheme = _scheme(text)
    if scheme in _SOCKETS:
        return _target(text, scheme)
    if scheme:
        raise InvalidEndpointError(text, f"{scheme}: is nothing to listen on: expected host:port or unix:/path")
    return parse_endpoint(text)


def dialled_endpoint(text: str) -> Endpoint | Target:
    """Parse what a client calls: host:port, or a scheme that gRPC resolves; raises InvalidEndpointError."""
    scheme = _scheme(text)
    return _target(text, scheme) if scheme else _with_port(text, parse_endpoint(text))


def advertised_endpoint(text: str) -> Endpoint:
    """Parse what other machines are told: host:port, neither a wildcard nor port 0; raises InvalidEndpointError."""
    if scheme := _scheme(text):
        raise InvalidEndpointError(text, f"{scheme}: is not for other machines: expected host:port")
    endpoint = _with_port(text, parse_endpoint(text))
    address = endpoint.address
    if endpoint.is_wildcard:
        raise InvalidEndpointError(text, "a wildcard cannot be dialled: name the address that others reach")
    if "%" in endpoint.host:
        raise InvalidEndpointError(text, "a zone means something on its own machine only: leave it out")
    if address is not None and (address.is_multicast or endpoint.host == "255.255.255.255"):
        raise InvalidEndpointError(text, "that is an address of many machines: name one")
    return endpoint


def stays_here(endpoint: Endpoint | Target) -> bool:
    """Tell whether what is sent to an endpoint, or listened for at one, never leaves this machine."""
    if isinstance(endpoint, Endpoint):
        return endpoint.is_loopback
    scheme = _scheme(endpoint.target)
    if scheme in _SOCKETS:
        return True
    rest = endpoint.target.partition(":")[2]
    parts = [rest.rpartition("/")[2]] if scheme == "dns" else rest.split(",")
    return all(parse_endpoint(part).is_loopback for part in parts)


def is_same_place(one: str, other: str) -> bool:
    """Tell whether two endpoints are one: the same text, or one port of this machine; False for what is none."""
    try:
        first, second = dialled_endpoint(one), dialled_endpoint(other)
    except InvalidEndpointError:
        return False
    if isinstance(first, Endpoint) and isinstance(second, Endpoint) and first.is_loopback and second.is_loopback:
        return first.port == second.port
    return str(first).lower() == str(second).lower()


def reachable(listen: str, port: int, hostname: str) -> Endpoint:
    """Endpoint under which other machines reach a server that listens here: a wildcard becomes this machine's name.

    `port` is the one that was taken. Raises InvalidEndpointError for a Unix socket.
    """
    endpoint = listen_endpoint(listen)
    if isinstance(endpoint, Target):
        raise InvalidEndpointError(listen, "other machines cannot reach a Unix socket: set advertise")
    host = hostname if endpoint.is_wildcard else endpoint.host
    return advertised_endpoint(str(Endpoint(host, port)))


def local(listen: str) -> Endpoint | Target:
    """Endpoint under which this machine reaches a server that listens here; raises InvalidEndpointError."""
    endpoint = listen_endpoint(listen)
    if isinstance(endpoint, Target) or not endpoint.is_wildcard:
        return endpoint
    # By name: where IPv6 is off, what listens on [::] has IPv4 only.
    return Endpoint("localhost" if ":" in endpoint.host else "127.0.0.1", endpoint.port)


def _scheme(text: str) -> str:
    """The gRPC scheme that a text begins with; `unix:7400` is a host of that name with its port."""
    scheme, colon, rest = text.partition(":")
    return scheme if colon and scheme in _RESOLVERS and not _PORT.fullmatch(rest) else ""


def _target(text: str, scheme: str) -> Target:
    rest = text.partition(":")[2]
    if not rest.isprintable() or any(character.isspace() for character in rest):
        raise InvalidEndpointError(text, f"expected {scheme}: without blanks")
    if scheme in _SOCKETS:
        named = rest.removeprefix("//") if rest.startswith("///") else rest
        if not named.strip("/") or named.startswith("//"):
            raise InvalidEndpointError(text, f"expected {scheme}:name" if "-" in scheme else "expected unix:/path")
        return Target(text)
    if scheme == "dns":
        authority = re.fullmatch(r"(?://[^/]*/)?([^/]+)", rest)
        if authority is None:
            raise InvalidEndpointError(text, "expected dns:///host:port")
        _part(text, authority[1])
        return Target(text)
    for address in rest.split(","):
        version = getattr(_part(text, address).address, "version", 0)
        if f"ipv{version}" != scheme:
            raise InvalidEndpointError(text, f"expected {scheme}: with addresses of its kind, separated by commas")
    return Target(text)


def _part(text: str, part: str) -> Endpoint:
    """One endpoint inside of a target."""
    try:
        return _with_port(part, parse_endpoint(part))
    except InvalidEndpointError as exc:
        raise InvalidEndpointError(text, exc.problem) from exc


def _bracketed(text: str, inside: str) -> str:
    address, percent, zone = inside.partition("%")
    # As URLs write it.
    zone = zone[2:] if zone.startswith("25") and len(zone) > 2 else zone
    if percent and not _ZONE.fullmatch(zone):
        raise InvalidEndpointError(text, f"expected the name of an interface after %, found {zone!r}")
    try:
        found = ipaddress.ip_address(address)
    except ValueError as exc:
        raise InvalidEndpointError(text, f"expected an IP address in the brackets, found {address[:60]!r}") from exc
    if percent and found.version == 4:
        raise InvalidEndpointError(text, "an IPv4 address has no zone")
    return f"{found}%{zone}" if percent else str(found)


def _host(text: str, host: str) -> str:
    if _NUMBERS.fullmatch(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as exc:
            raise InvalidEndpointError(text, f"{host[:60]!r} is no IPv4 address: expected four numbers") from exc
    if len(host) > _MAX_NAME or not _NAME.fullmatch(host):
        raise InvalidEndpointError(text, f"{host[:60]!r} is no host name")
    return host


def _port(text: str, port: str) -> int:
    if not _PORT.fullmatch(port) or int(port) > MAX_PORT:
        raise InvalidEndpointError(
            text, f"expected a port from 1 to {MAX_PORT} after the last colon, found {port[:60]!r}"
        )
    return int(port)


def _with_port(text: str, endpoint: Endpoint) -> Endpoint:
    if endpoint.port == 0:
        raise InvalidEndpointError(text, f"port 0 cannot be dialled: expected 1 to {MAX_PORT}")
    return endpoint
