"""Options of connections to Redis that a test has for itself: on a busy machine an answer may be late."""

from typing import Any

from shared.coordination.connection import RedisOptions

PATIENCE_S = 120.0


def patient(url: str, **more: Any) -> RedisOptions:
    """Those of a URL, with time for each command; what is tested of timeouts says its own."""
    return RedisOptions(url, **{"command_timeout_s": PATIENCE_S, **more})
