"""Page sizes and opaque page tokens."""

import base64
import binascii
import json
from collections.abc import Sequence

from shared.errors import FieldViolation, InvalidPageTokenError, InvalidRequestError

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

Position = tuple[str | int, ...]


def page_size_of(requested: int) -> int:
    """0 means the default; raises InvalidRequestError for a negative size."""
    if requested < 0:
        raise InvalidRequestError([FieldViolation("page_size", f"found {requested}, expected 0 to {MAX_PAGE_SIZE}")])
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode_token(listing: Sequence[object], position: Position) -> str:
    """A token for the page behind `position` of one listing (its name and filters)."""
    return base64.urlsafe_b64encode(json.dumps([list(listing), list(position)]).encode()).decode()


def decode_token(token: str, listing: Sequence[object], first: Position) -> Position:
    """The position in a token; `first` where there is none.

    Raises InvalidPageTokenError for a token of another listing, or of other filters.
    """
    if not token:
        return first
    try:
        found, position = json.loads(base64.urlsafe_b64decode(token.encode()))
        matches = found == json.loads(json.dumps(list(listing))) and len(position) == len(first)
        if not matches or any(type(a) is not type(b) for a, b in zip(position, first, strict=True)):
            raise InvalidPageTokenError
    except (ValueError, TypeError, binascii.Error, RecursionError) as exc:
        raise InvalidPageTokenError from exc
    return tuple(position)
