"""Page sizes and opaque page tokens."""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from hotslot.errors import FieldViolation, InvalidPageTokenError, InvalidRequestError

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

MAX_PAGE_BYTES = 1024 * 1024
"""gRPC serialises answers on the event loop, and many clients take messages of 4 MiB at most."""

_MARK_CHARS = 32
MAX_ID = 2**63 - 1
"""Largest id of a row."""

Position = tuple[str | int, ...]
AnyMessage = TypeVar("AnyMessage", bound=Message)


def page_size_of(requested: int) -> int:
    """0 means the default; raises InvalidRequestError for a negative size."""
    if requested < 0:
        raise InvalidRequestError([FieldViolation("page_size", f"found {requested}, expected 0 to {MAX_PAGE_SIZE}")])
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def fitting(messages: Iterable[AnyMessage], limit: int) -> tuple[list[AnyMessage], bool]:
    """The messages of one page, at least one and as many as a client takes, and whether more may follow."""
    page: list[AnyMessage] = []
    size_bytes = 0
    for message in messages:
        size_bytes += message.ByteSize()
        if page and size_bytes > MAX_PAGE_BYTES:
            return page, True
        page.append(message)
    return page, len(page) == limit


def encode_token(listing: Sequence[object], position: Position) -> str:
    """A token for the page behind `position` of one listing (its name and filters), which is as short as the position.

    The bound of page tokens (`shared.server.bounds`) holds for filters of any size.
    """
    return base64.urlsafe_b64encode(json.dumps([_mark_of(listing), list(position)]).encode()).decode()


def decode_token(token: str, listing: Sequence[object], first: Position) -> Position:
    """The position in a token; `first` where there is none.

    Raises InvalidPageTokenError for a token of another listing, or of other filters.
    """
    if not token:
        return first
    try:
        found, position = json.loads(base64.urlsafe_b64decode(token.encode()))
        matches = found == _mark_of(listing) and len(position) == len(first)
        if not matches or not all(_can_be(value, like) for value, like in zip(position, first, strict=True)):
            raise InvalidPageTokenError
    except (ValueError, TypeError, binascii.Error, RecursionError) as exc:
        raise InvalidPageTokenError from exc
    return tuple(position)


def _mark_of(listing: Sequence[object]) -> str:
    """Mark that tells a listing from others."""
    return hashlib.sha256(json.dumps(list(listing)).encode()).hexdigest()[:_MARK_CHARS]


def _can_be(value: object, like: str | int) -> bool:
    """Tell whether a value is of the kind that stands in a position, and one that a database takes."""
    if isinstance(value, str) and isinstance(like, str):
        value.encode()  # ValueError for what is no text, such as half of a surrogate pair
        return "\0" not in value
    return type(value) is int and isinstance(like, int) and 0 <= value <= MAX_ID
