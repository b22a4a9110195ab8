"""Parses JSON objects strictly: no key twice, no NaN, no lone surrogates, no runaway numbers or nesting."""

import json
import math
import re
from typing import Any, NoReturn

MAX_INTEGER_DIGITS = 19
MAX_DEPTH = 64
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class StrictJsonError(ValueError):
    """Text that is not the JSON object that was asked for."""


class DuplicateKeyError(StrictJsonError):
    """An object with a key twice, on which parsers disagree."""


def parse_object(data: bytes, *, sizes_only: bool = False) -> dict[str, Any]:
    """Parse one JSON object; with `sizes_only` every number must be a non-negative integer.

    Raises StrictJsonError, or DuplicateKeyError for a key that stands twice.
    """
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_pairs,
            parse_int=_parse_size if sizes_only else _parse_int,
            parse_float=_no_number if sizes_only else _parse_float,
            parse_constant=_no_number,
        )
    except StrictJsonError:
        raise
    except ValueError as exc:
        raise StrictJsonError(str(exc)[:200]) from exc
    except RecursionError as exc:
        raise StrictJsonError("nested too deeply") from exc
    if not isinstance(document, dict):
        raise StrictJsonError(f"found a {type(document).__name__}, expected an object")
    _check_depth(document, 1)
    if _SURROGATE.search(data):
        _check_text(document)
    return document


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateKeyError(f"the key {key[:200]!a} stands twice")
        found[key] = value
    return found


def _check_depth(value: Any, depth: int) -> None:
    """Refuse nesting that later readers could stumble over; how deep the parser goes depends on Python's version."""
    if depth > MAX_DEPTH:
        raise StrictJsonError(f"nested more than {MAX_DEPTH} deep")
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            _check_depth(item, depth + 1)


def _check_text(value: Any) -> None:
    """Refuse text that UTF-8 cannot carry (`\\ud800` alone)."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise StrictJsonError(f"{value[:80]!a} is not Unicode text") from exc
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_text(item)
    elif isinstance(value, list):
        for item in value:
            _check_text(item)


def _parse_int(text: str) -> int:
    if len(text.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise StrictJsonError(f"the number {text[:40]}… is too long")
    return int(text)


def _parse_size(text: str) -> int:
    if text.startswith("-"):
        raise StrictJsonError(f"{text[:40]} is not a size")
    return _parse_int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError(f"the number {text[:40]} overflows")
    return value


def _no_number(text: str) -> NoReturn:
    raise StrictJsonError(f"{text[:40]} is not allowed")
