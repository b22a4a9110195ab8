"""URLs that may hold a password: shown masked, and never in part when they cannot be read without doubt."""

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

MASK = "***"
_HARMLESS_PARAMETERS = frozenset(
    [
        "db",
        "protocol",
        "client_name",
        "sslmode",
        "sslrootcert",
        "ssl_cert_reqs",
        "ssl_ca_certs",
        "ssl_check_hostname",
        "connect_timeout",
        "application_name",
        "timeout",
        "mode",
        "health_check_interval",
        "socket_keepalive",
    ]
)
"""Parameters of a URL's query that are no secrets. Any other value may be one."""
SEVERAL_HOSTS = "+sentinel"
"""End of the schemes of URLs that name several hosts, with commas between them."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_HALF_ESCAPED = re.compile(r"%(?![0-9A-Fa-f]{2})")
UNESCAPED = (
    "percent-encode the password: / # ? @ % : in it are written %2F %23 %3F %40 %25 %3A "
    "(urllib.parse.quote(password, safe=''))"
)


def scheme_of(url: str) -> str:
    """Scheme of a URL, in lower case; empty when it has none."""
    scheme = _SCHEME.match(url)
    return scheme[0].lower() if scheme else ""


def hosts_of(url: str) -> list[str]:
    """Hosts of a URL, each with its port where it has one; raises ValueError for a text that is no URL."""
    netloc = urlsplit(url).netloc.rpartition("@")[2]
    return netloc.split(",") if SEVERAL_HOSTS in scheme_of(url) else [netloc]


def is_unescaped(url: str) -> bool:
    """True when a password may reach beyond what a reader of URLs takes for it."""
    try:
        parts = urlsplit(url)
        for host in hosts_of(url):
            urlsplit(f"//{host}").port  # noqa: B018 (reading it is the check)
    except ValueError:
        return True
    user, at, host = parts.netloc.rpartition("@")
    if at and ("@" in user or _HALF_ESCAPED.search(user)):
        return True
    # A password ends at its @. One that stands later belongs to a password with a / ? or # in it.
    return "@" in f"{parts.path}{parts.query}{parts.fragment}" and bool(at or ":" in host)


def masked_url(url: str) -> str:
    """The URL with everything secret in it replaced by ***; all but its scheme where that could be anywhere."""
    if is_unescaped(url):
        return f"{scheme_of(url)}://{MASK}"
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if at and ":" in user:
        user = f"{user.partition(':')[0]}:{MASK}"
    query = [
        (name, value if name in _HARMLESS_PARAMETERS else MASK)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    # Put together by hand: the standard library forgets the // of an empty host.
    shown = f"{parts.scheme}://{user}{at}{host}{parts.path}"
    shown += f"?{urlencode(query, safe='*')}" if query else ""
    return shown + (f"#{MASK}" if parts.fragment else "")
