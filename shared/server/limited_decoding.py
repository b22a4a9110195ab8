"""Decoding of requests that are not too large: those that are, are refused by their size alone."""

from collections.abc import Callable
from typing import Any

from hotslot.rpc.message_sizes import too_large
from shared.server.counters import BOUND_REFUSALS, MESSAGE, Counters
from shared.server.wire_scan import Refused


def limited(decode: Callable[[bytes], Any] | None, max_bytes: int, counters: Counters) -> Callable[[bytes], Any]:
    """A decoder that refuses what is larger by its size alone, and counts what it refuses."""

    def decode_or_refuse(data: bytes) -> Any:
        found = Refused(too_large(len(data), max_bytes)) if len(data) > max_bytes else decode(data) if decode else data
        if isinstance(found, Refused):
            counters.add(BOUND_REFUSALS, MESSAGE)
        return found

    return decode_or_refuse
