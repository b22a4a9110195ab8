"""Values held against the field of a message that is to hold them, and the words that refuse them."""

import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from hotslot.errors import FieldViolation

MAX_SHOWN_CHARS = 60

_INT_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_MAX_FLOAT32 = float.fromhex("0x1.fffffep+127")


def mismatch(field: str, value: object, expected: str) -> FieldViolation:
    """Violation of a field that holds something else than expected."""
    return FieldViolation(field, f"found {shown(value)}, expected {expected}")


def items_of(value: object) -> list[object] | None:
    """The items of what stands for a sequence; None for anything else, such as text, or an array of no dimension."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        return None
    try:
        items = iter(value)
    except TypeError:
        return None
    return list(items)


NOUNS = {
    FieldDescriptor.CPPTYPE_STRING: "string",
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_FLOAT: "number",
}
"""Words for values of a field; others are integers."""


def is_plain(field: FieldDescriptor, items: list[Any]) -> bool:
    """Decide quickly that a long list of numbers is in order, since prompts are given as such."""
    bounds = _INT_BOUNDS.get(field.cpp_type)
    if bounds is None or not items or set(map(type, items)) != {int}:
        return False
    return bool(bounds[0] <= min(items) and max(items) <= bounds[1])


def plain(field: FieldDescriptor, value: Any) -> object:
    """A value that fits as protobuf takes it, whatever library its number is from."""
    if field.cpp_type in _INT_BOUNDS:
        return operator.index(value)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return float(value)
    return bytes(value) if field.type == FieldDescriptor.TYPE_BYTES else value


def scalar_problem(field: FieldDescriptor, value: object) -> str | None:
    """Text of what was expected instead of the value; None when it fits."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return None if isinstance(value, bytes | bytearray | memoryview) else "bytes"
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _text_problem(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return None if isinstance(value, bool) else "True or False"
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _number_problem(field, value)
    if field.enum_type is not None:
        is_known = type(value) is int and value in field.enum_type.values_by_number
        return None if is_known else f"a value of {field.enum_type.name}"
    return _integer_problem(field, value)


def _text_problem(value: object) -> str | None:
    if not isinstance(value, str):
        return "a string"
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        return f"text that UTF-8 can express: character {exc.start} is half of a surrogate pair"
    return None


def _number_problem(field: FieldDescriptor, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return "a number"
    try:
        number = float(value)
    except OverflowError:
        return "a number that a double can hold"
    if not math.isfinite(number):
        return "a finite number"
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT and abs(number) > _MAX_FLOAT32:
        return f"at most {_MAX_FLOAT32:g}"
    return None


def _integer_problem(field: FieldDescriptor, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return "an integer"
    low, high = _INT_BOUNDS[field.cpp_type]
    return None if low <= operator.index(value) <= high else f"an integer between {low} and {high}"


def shown(value: object) -> str:
    """The value as an error shows it: short, with its type where that is not plain to see, and printable anywhere."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, numbers.Number):
        # An int may be too long for Python to print.
        too_long = isinstance(value, int) and value.bit_length() > 4 * MAX_SHOWN_CHARS
        return f"an integer of {value.bit_length()} bits" if too_long else f"{value}"  # type: ignore[attr-defined]
    if isinstance(value, str):
        cut = value if len(value) <= MAX_SHOWN_CHARS else value[: MAX_SHOWN_CHARS - 1] + "…"
        return "'" + cut.encode("unicode_escape").decode() + "'"
    return f"{type(value).__name__}"
