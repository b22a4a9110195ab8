"""URLs of Redis: which there are, read strictly, so that a mistake is one line and no password shows."""

import re
from urllib.parse import parse_qsl, urlsplit

from hotslot.endpoints import parse_endpoint
from hotslot.secret_urls import UNESCAPED, is_unescaped, scheme_of

CLUSTER = "+cluster://"
REDIS_EXAMPLE = "redis://host:6379/0"
NODE_SCHEMES = ("redis", "rediss", "unix")
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
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
_EXPECTED = "expected redis://, rediss:// (TLS), unix://, redis+cluster:// or rediss+cluster://"

_DATABASE_HINT = "; after the host only the number of a database may follow"


def check_redis_url(url: str) -> None:
    """Raise ValueError, without any part of the URL but its scheme, for what cannot be used."""
    scheme = scheme_of(url)
    if not scheme:
        raise ValueError(f"expected a URL, for example {REDIS_EXAMPLE}")
    if "sentinel" in scheme:
        raise ValueError(
            f"{scheme}:// is not supported: name one node with redis://, or a cluster with redis+cluster://"
        )
    if scheme not in (*NODE_SCHEMES, *CLUSTER_SCHEMES):
        raise ValueError(f"unknown scheme {scheme[:40]!r}: {_EXPECTED}")
    if is_unescaped(url):
        raise ValueError(_why_unreadable(url))
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    password = user.partition(":")[2]
    if ":" in password or parts.fragment or (scheme != "unix" and not _DATABASE.fullmatch(parts.path)):
        raise ValueError(UNESCAPED + _DATABASE_HINT)
    if scheme != "unix" and not _HOST.fullmatch(host.removesuffix(f":{parts.port}").removesuffix(":")):
        raise ValueError(f"expected host:port after {scheme}://, an IPv6 address in brackets")
    if parts.port == 0:
        raise ValueError("port 0 cannot be dialled: expected 1 to 65535")
    if scheme == "unix" and (host or parts.path in ("", "/")):
        raise ValueError("expected the path of a socket: unix:///path/to/redis.sock")
    if scheme in CLUSTER_SCHEMES and parts.path not in ("", "/", "/0"):
        raise ValueError("a cluster has no numbered databases: leave the number out")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if scheme in CLUSTER_SCHEMES and name == "db" and value != "0":
            raise ValueError("a cluster has no numbered databases: leave db out")
        if name not in _PARAMETERS:
            # The name may be the end of a password.
            raise ValueError(f"unknown parameter after ?; known: {', '.join(sorted(_PARAMETERS))}; or {UNESCAPED}")


def redis_stays_here(url: str) -> bool:
    """Tell whether all that a URL names is on this machine."""
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    return all(parse_endpoint(_with_port(host)).is_loopback for host in hosts if host)


def _with_port(host: str) -> str:
    """A host with a port, where it may stand without."""
    return host if re.search(r":[0-9]+$", host) and not host.endswith("]") else f"{host.removesuffix(':')}:6379"


def _why_unreadable(url: str) -> str:
    """Message for a port that is none, where no password could be meant; else how to write one."""
    rest = url.partition("://")[2]
    return UNESCAPED if "@" in rest else "expected host:port, with a port from 1 to 65535"
