"""Targets that a hub may redirect to: pure, before anything is resolved or connected to."""

from collections.abc import Sequence

import httpx2


def allowed_target(url: httpx2.URL, location: str, endpoint: httpx2.URL, hosts: Sequence[str]) -> httpx2.URL | None:
    """URL that a redirect leads to, if it may be followed: to the endpoint itself, or over TLS to one of `hosts`.

    None for anything else: other hosts and schemes, other ports of an allowed host, a user name (which would become
    credentials of the request), and what is no URL.
    """
    try:
        target = url.join(location)
        host = target.raw_host.decode("ascii")
        port = target.port
    except (httpx2.InvalidURL, ValueError, UnicodeError):
        return None
    if target.userinfo:
        return None
    if (target.scheme, host, port) == (endpoint.scheme, endpoint.raw_host.decode("ascii"), endpoint.port):
        return target
    is_named = any(host == named or host.endswith(f".{named}") for named in hosts)
    return target if target.scheme == "https" and port is None and is_named else None
