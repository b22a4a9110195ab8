"""URLs of Redis: which there are, read strictly, so that a mistake is one line and no password shows."""

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from hotslot.endpoints import parse_endpoint
from hotslot.secret_urls import UNESCAPED, hosts_of, is_unescaped, scheme_of

CLUSTER = "+cluster://"
REDIS_EXAMPLE = "redis://host:6379/0"
NODE_SCHEMES = ("redis", "rediss", "unix")
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SENTINEL = "+sentinel://"
SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
SENTINEL_EXAMPLE = "redis+sentinel://sentinel-0:26379,sentinel-1:26379/mymaster"
_SENTINEL_PARAMETERS = frozenset(["sentinel_username", "sentinel_password"])
_SENTINEL_PORT = 26379
_PARAMETERS = frozenset(
    [
        "db",
        "username",
        "password",
        "client_name",
        "protocol",
        "health_check_interval",
        "socket_keepalive",
        "ssl_cert_reqs",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_check_hostname",
        "ssl_min_version",
        "ssl_ciphers",
    ]
)
_DATABASE = re.compile(r"(?:/[0-9]*)?")
_HOST = re.compile(r"[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~%-]+)?\]")
_SERVICE = re.compile(r"/[A-Za-z0-9._-]+(?:/[0-9]*)?")
_EXPECTED = (
    "expected redis://, rediss:// (TLS), unix://, redis+cluster://, rediss+cluster://, redis+sentinel:// or "
    "rediss+sentinel://"
)
_DATABASE_HINT = "; after the host only the number of a database may follow"


def check_redis_url(url: str) -> None:
    """Raise ValueError, without any part of the URL but its scheme, for what cannot be used."""
    scheme = scheme_of(url)
    if not scheme:
        raise ValueError(f"expected a URL, for example {REDIS_EXAMPLE}")
    if scheme not in (*NODE_SCHEMES, *CLUSTER_SCHEMES, *SENTINEL_SCHEMES):
        raise ValueError(f"unknown scheme {scheme[:40]!r}: {_EXPECTED}")
    if is_unescaped(url):
        raise ValueError(_why_unreadable(url))
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    password = user.partition(":")[2]
    if ":" in password or parts.fragment:
        raise ValueError(UNESCAPED + _DATABASE_HINT)
    if scheme in SENTINEL_SCHEMES:
        if not _SERVICE.fullmatch(parts.path):
            raise ValueError(f"expected the name of the service, for example {SENTINEL_EXAMPLE}")
    elif scheme != "unix" and not _DATABASE.fullmatch(parts.path):
        raise ValueError(UNESCAPED + _DATABASE_HINT)
    for each in hosts_of(url) if scheme != "unix" else ():
        port = urlsplit(f"//{each}").port
        if not _HOST.fullmatch(each.removesuffix(f":{port}").removesuffix(":")) or (
            scheme in SENTINEL_SCHEMES and each.partition(":")[0] == ""
        ):
            raise ValueError(f"expected host:port after {scheme}://, an IPv6 address in brackets")
        if port == 0:
            raise ValueError("port 0 cannot be dialled: expected 1 to 65535")
    if scheme == "unix" and (host or parts.path in ("", "/")):
        raise ValueError("expected the path of a socket: unix:///path/to/redis.sock")
    if scheme in CLUSTER_SCHEMES and parts.path not in ("", "/", "/0"):
        raise ValueError("a cluster has no numbered databases: leave the number out")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if scheme in CLUSTER_SCHEMES and name == "db" and value != "0":
            raise ValueError("a cluster has no numbered databases: leave db out")
        known = _PARAMETERS | (_SENTINEL_PARAMETERS if scheme in SENTINEL_SCHEMES else frozenset())
        if name not in known:
            # The name may be the end of a password.
            raise ValueError(f"unknown parameter after ?; known: {', '.join(sorted(known))}; or {UNESCAPED}")


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """Parts of a URL of sentinels."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    """Name by which the sentinels know the primary and its replicas."""
    credentials: str = field(repr=False)
    """User and password of the nodes with the @ behind them, as the URL has them."""
    rest: str = field(repr=False)
    """Database and parameters."""
    uses_tls: bool

    def node_url(self, host: str = "") -> str:
        """URL of a node at host:port; without it a URL of no host."""
        return f"{'rediss' if self.uses_tls else 'redis'}://{self.credentials}{host}{self.rest}"


def read_sentinel_url(url: str) -> SentinelUrl:
    """Parts of a URL that `check_redis_url` has accepted."""
    parts = urlsplit(url)
    service, _, database = parts.path.removeprefix("/").partition("/")
    found = (urlsplit(f"//{each}") for each in hosts_of(url))
    hosts = tuple((each.hostname or "", each.port or _SENTINEL_PORT) for each in found)
    user, at, _ = parts.netloc.rpartition("@")
    rest = f"/{database}" + (f"?{parts.query}" if parts.query else "")
    return SentinelUrl(hosts, service, user + at, rest, scheme_of(url) == "rediss+sentinel")


def without_user(url: str) -> str:
    """The URL without the user and password of the nodes."""
    parts = urlsplit(url)
    query = urlencode([pair for pair in parse_qsl(parts.query) if pair[0] not in ("username", "password")])
    host = parts.netloc.rpartition("@")[2]
    # Put together by hand: the standard library forgets the // of an empty host.
    return f"{parts.scheme}://{host}{parts.path}" + (f"?{query}" if query else "")


def redis_stays_here(url: str) -> bool:
    """Tell whether a URL's Redis is surely on this machine; nodes that sentinels name may be anywhere."""
    scheme = scheme_of(url)
    if scheme in ("unix", *SENTINEL_SCHEMES):
        return scheme == "unix"
    return all(parse_endpoint(_with_port(host)).is_loopback for host in hosts_of(url) if host)


def _with_port(host: str) -> str:
    """A host with a port, where it may stand without."""
    return host if re.search(r":[0-9]+$", host) and not host.endswith("]") else f"{host.removesuffix(':')}:6379"


def _why_unreadable(url: str) -> str:
    """Message for a port that is none, where no password could be meant; else how to write one."""
    rest = url.partition("://")[2]
    return UNESCAPED if "@" in rest else "expected host:port, with a port from 1 to 65535"
