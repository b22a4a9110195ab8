"""Errors as callers get them: typed, bounded, small enough for trailers, and the same at the other end."""

import re

from hotslot.errors import HotslotError, InvalidRequestError
from hotslot.rpc import details
from hotslot.rpc.status import from_status, row_for, to_status
from tools.fuzz.target import FuzzOutcome, require

MAX_FIELD_CHARS = 200
MAX_DESCRIPTION_CHARS = 1_000
MAX_MESSAGE_CHARS = 32 * (MAX_FIELD_CHARS + MAX_DESCRIPTION_CHARS) + 200
LONG_MESSAGE_CHARS = 800
"""From here on a status may have to leave something out."""
_INDEX = re.compile(r"\[[^\]]*\]")


def outcome_of(error: HotslotError, *, is_sent: bool) -> FuzzOutcome:
    """The outcome of a refused request: the reason, with the fields at fault; `is_sent` has it arrive as well."""
    row = row_for(error)
    require(row.error is type(error), f"{type(error).__name__} has no row in the table of statuses")
    require(bool(error.message), "an error without a message")
    require(len(error.message) <= MAX_MESSAGE_CHARS, f"a message of {len(error.message)} characters")
    if is_sent or len(error.message) > LONG_MESSAGE_CHARS:
        _check_arrival(error)
    if not isinstance(error, InvalidRequestError):
        return FuzzOutcome(frozenset({row.reason}))
    require(bool(error.fields), "a refusal that names no field")
    for field in error.fields:
        require(0 < len(field.field) <= MAX_FIELD_CHARS, f"a field's name of {len(field.field)} characters")
        size = len(field.description)
        require(0 < size <= MAX_DESCRIPTION_CHARS, f"{size} characters about {field.field}")
    return FuzzOutcome(frozenset(f"{row.reason} {_INDEX.sub('', field.field)}" for field in error.fields))


def _check_arrival(error: HotslotError) -> None:
    status = to_status(error)
    require(details._wire_bytes(status) <= details.MAX_STATUS_BYTES, "a status that is too large for trailers")
    found = from_status(type(status).FromString(status.SerializeToString()))
    require(found is not None and type(found) is type(error), f"{type(error).__name__} arrives as {found!r}")
    if not isinstance(error, InvalidRequestError):
        return
    assert isinstance(found, InvalidRequestError)
    require(bool(found.fields), "no field arrives")
    for sent, got in zip(error.fields, found.fields, strict=False):
        is_whole = got.description == sent.description or got.description[:-1] == sent.description[: 500 - 1]
        require(got.field == sent.field and is_whole, f"{sent} arrives as {got}")
