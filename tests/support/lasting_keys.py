"""Keys that would stay in a Redis for ever: those that a test left without a time to live."""

import os
import re
from collections.abc import Iterator

import psutil
from redis import Redis, RedisError

MAY_LAST: frozenset[str] = frozenset()
"""Keys that may stay for ever: none. Function libraries, cached scripts and ACL users are no keys."""
_TIMEOUT_S = 5.0
_TITLE = re.compile(r"valkey-server 127\.0\.0\.1:(\d+)")


def lasting_keys() -> dict[int, list[str]]:
    """Keys without a time to live, by the port of each Valkey that this process runs and that is not frozen."""
    found = {}
    for port in _ports():
        with Redis(port=port, socket_timeout=_TIMEOUT_S, decode_responses=True, encoding_errors="replace") as server:
            try:
                keys = [key for key in server.scan_iter(count=1_000) if server.pttl(key) == -1]
            except (RedisError, OSError):
                continue
        if lasting := sorted(set(keys) - MAY_LAST):
            found[port] = lasting
    return found


def _ports() -> Iterator[int]:
    for child in psutil.Process(os.getpid()).children(recursive=True):
        try:
            title, status = " ".join(child.cmdline()), child.status()
        except psutil.Error:
            continue
        listens = _TITLE.search(title)
        if listens and status not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            yield int(listens[1])
