"""Attempts of calls, which gRPC repeats out of its callers' sight, and sizes of their messages.

gRPC's client sends the number of earlier attempts with each further one, and our servers give it back in trailing
metadata, where there were any: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SENT_KEY = "grpc-previous-rpc-attempts"
TOLD_KEY = "hotslot-previous-attempts"
MAX_ATTEMPTS = 5
"""Most attempts that gRPC makes."""

MetadataPairs = Iterable[tuple[str, str | bytes]]


@dataclass(slots=True)
class MessageSizes:
    """Bytes of the messages of one call."""

    sent: int = 0
    received: int = 0


def previous_attempts(metadata: MetadataPairs | None, key: str) -> int:
    """Attempts that came before, as metadata has it; 0 for what is no such number."""
    found = next((value for name, value in metadata or () if name == key), "")
    number = int(found) if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 3 else 0
    return min(number, MAX_ATTEMPTS - 1)


def told_attempts(metadata: MetadataPairs | None) -> tuple[tuple[str, str], ...]:
    """Trailing metadata of an answer to a call that came with this metadata."""
    number = previous_attempts(metadata, SENT_KEY)
    return ((TOLD_KEY, str(number)),) if number else ()


def counting(made_by: tuple[Any, Mapping[str, Any]], sizes: MessageSizes) -> tuple[Any, dict[str, Any]]:
    """Arguments of a channel's method with serialisers that count what they make and take."""
    (path, *rest), named = made_by
    encode = rest[0] if rest else named.get("request_serializer")
    decode = rest[1] if len(rest) > 1 else named.get("response_deserializer")

    def counted_encode(message: Any) -> bytes:
        data: bytes = message if encode is None else encode(message)
        sizes.sent += len(data)
        return data

    def counted_decode(data: bytes) -> Any:
        sizes.received += len(data)
        return data if decode is None else decode(data)

    others = {name: value for name, value in named.items() if name not in _SERIALISERS}
    return (path,), {**others, **dict(zip(_SERIALISERS, (counted_encode, counted_decode), strict=True))}


_SERIALISERS: tuple[str, str] = ("request_serializer", "response_deserializer")
