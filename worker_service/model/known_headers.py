"""Headers of weights blobs that were parsed before: a trainer's next version has the last one's."""

import threading

from cachetools import LRUCache

from hotslot.formats.safetensors_header import PREFIX_BYTES, Header, HeaderLimits, parse_header

MAX_TENSORS = 20_000
"""Tensors of all headers together that are kept; one takes half a kilobyte."""


class KnownHeaders:
    """Headers by their bytes and the size of their files. Thread-safe."""

    def __init__(self, max_tensors: int = MAX_TENSORS) -> None:
        self._known: LRUCache[tuple[int, bytes], Header] = LRUCache(max_tensors, lambda header: len(header.tensors))
        self._lock = threading.Lock()

    def header(self, data: memoryview, subject: str) -> Header:
        """The header of a file that is all of `data`; raises as `parse_header`."""
        end = PREFIX_BYTES + int.from_bytes(data[:PREFIX_BYTES], "little")
        # One that is too large, or none, is refused below without being looked at.
        key = len(data), bytes(data[: min(end, PREFIX_BYTES + HeaderLimits().max_header_bytes)])
        with self._lock:
            known = self._known.get(key)
        if known is not None:
            return known
        header = parse_header(data, len(data), subject, HeaderLimits())
        with self._lock:
            if len(header.tensors) <= self._known.maxsize:
                self._known[key] = header
        return header
