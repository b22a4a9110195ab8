"""The codec between the contract's types and protobuf messages, driven by their descriptors."""

from hotslot.codec.checking import build, request_to_proto
from hotslot.codec.table import (
    from_proto,
    generation_event_from_proto,
    generation_event_to_proto,
    to_proto,
)
from hotslot.codec.wrong_values import mismatch

__all__ = [
    "build",
    "from_proto",
    "generation_event_from_proto",
    "generation_event_to_proto",
    "mismatch",
    "request_to_proto",
    "to_proto",
]
