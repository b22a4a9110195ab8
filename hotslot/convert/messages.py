"""Builds every message that the client sends, each value held against its field in the proto descriptor.

Protobuf refuses what does not fit with a TypeError, a ValueError or a UnicodeEncodeError that names no field, and takes
some of it silently (True for an int, the letters of a str for a list). Here all of it is one InvalidRequestError.
"""

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from hotslot.errors import FieldViolation, InvalidRequestError

M = TypeVar("M", bound=Message)

MAX_PROBLEMS = 16
"""More fields than this are not named in one error."""
MAX_SHOWN_CHARS = 60

_INT_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_MAX_FLOAT32 = float.fromhex("0x1.fffffep+127")


@dataclass(frozen=True, slots=True)
class Form:
    """A type of the client that stands for a message, and the message's fields from one of its values."""

    type: type
    fields: Callable[[Any], Mapping[str, object]]


Forms = Mapping[Descriptor, Form]
"""By the message that they stand for; other messages are given as mappings of their fields."""


def build(
    kind: type[M], values: Mapping[str, object] | None = None, forms: Forms | None = None, /, **more: object
) -> M:
    """Make a message of its fields' values; None leaves a field unset where that differs from its zero.

    Raises InvalidRequestError that names every field whose value has the wrong type, is outside of the field's range,
    is not finite, or is text that UTF-8 cannot express.
    """
    problems: list[FieldViolation] = []
    made = _Builder(forms or {}, problems).build(kind.DESCRIPTOR, {**(values or {}), **more}, "")
    if problems:
        raise InvalidRequestError(problems[:MAX_PROBLEMS])
    assert isinstance(made, kind)
    return made


def mismatch(field: str, value: object, expected: str) -> FieldViolation:
    """Violation of a field that holds something else than expected."""
    return FieldViolation(field, f"found {_shown(value)}, expected {expected}")


def items_of(value: object) -> list[object] | None:
    """The items of what stands for a sequence; None for anything else, such as text, or an array of no dimension."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        return None
    try:
        items = iter(value)
    except TypeError:
        return None
    return list(items)


class _Builder:
    """Walks one message's descriptor and values, and collects what is wrong."""

    def __init__(self, forms: Forms, problems: list[FieldViolation]) -> None:
        self._forms = forms
        self._problems = problems

    def build(self, descriptor: Any, values: Mapping[str, object], path: str) -> Message:
        """Make a message; what is wrong is left out and noted."""
        made: dict[str, object] = {}
        for name, value in values.items():
            field = descriptor.fields_by_name[name]
            place = f"{path}{_oneof(field)}{name}"
            if value is None and field.has_presence:
                continue
            noted = len(self._problems)
            found = self._field(field, value, place)
            if len(self._problems) == noted:
                made[name] = found
        return GetMessageClass(descriptor)(**made)

    def _field(self, field: FieldDescriptor, value: object, path: str) -> object:
        message_type = field.message_type
        if message_type is not None and message_type.GetOptions().map_entry:
            return self._map(message_type, value, path)
        if field.is_repeated:
            return self._list(field, value, path)
        return self._single(field, value, path)

    def _single(self, field: FieldDescriptor, value: object, path: str) -> object:
        if field.message_type is None:
            problem = _scalar_problem(field, value)
            if problem is not None:
                self._problems.append(mismatch(path, value, problem))
                return None
            return _plain(field, value)
        form = self._forms.get(field.message_type)
        if form is not None and isinstance(value, form.type):
            value = form.fields(value)
        elif form is not None or not isinstance(value, Mapping):
            expected = form.type.__name__ if form is not None else "a mapping of its fields"
            self._problems.append(mismatch(path, value, expected))
            return None
        return self.build(field.message_type, value, f"{path}.")

    def _list(self, field: FieldDescriptor, value: object, path: str) -> list[object]:
        items = items_of(value)
        if items is None:
            self._problems.append(mismatch(path, value, f"a sequence of {self._expected(field)}"))
            return []
        if _is_plain(field, items):
            return items
        made = []
        for index, item in enumerate(items):
            if len(self._problems) >= MAX_PROBLEMS:
                break
            made.append(self._single(field, item, f"{path}[{index}]"))
        return made

    def _map(self, entry: Descriptor, value: object, path: str) -> dict[object, object]:
        if not isinstance(value, Mapping):
            self._problems.append(mismatch(path, value, "a mapping"))
            return {}
        key_field, value_field = entry.fields_by_name["key"], entry.fields_by_name["value"]
        made = {}
        for key, item in value.items():
            if len(self._problems) >= MAX_PROBLEMS:
                break
            place = f"{path}[{_shown(key)}]"
            made[self._single(key_field, key, place)] = self._single(value_field, item, place)
        return made

    def _expected(self, field: FieldDescriptor) -> str:
        if field.message_type is None:
            return f"{_NOUNS.get(field.cpp_type, 'integer')}s"
        form = self._forms.get(field.message_type)
        return form.type.__name__ if form is not None else field.message_type.name


_NOUNS = {
    FieldDescriptor.CPPTYPE_STRING: "string",
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_FLOAT: "number",
}


def _oneof(field: FieldDescriptor) -> str:
    """Name of the choice that the field is one of, as a beginning of its path."""
    oneof = field.containing_oneof
    return f"{oneof.name}." if oneof is not None and len(oneof.fields) > 1 else ""


def _is_plain(field: FieldDescriptor, items: list[Any]) -> bool:
    """Decide quickly that a long list of numbers is in order, since prompts are given as such."""
    bounds = _INT_BOUNDS.get(field.cpp_type)
    if bounds is None or not items or set(map(type, items)) != {int}:
        return False
    return bool(bounds[0] <= min(items) and max(items) <= bounds[1])


def _plain(field: FieldDescriptor, value: Any) -> object:
    """A value that fits as protobuf takes it, whatever library its number is from."""
    if field.cpp_type in _INT_BOUNDS:
        return operator.index(value)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return float(value)
    return bytes(value) if field.type == FieldDescriptor.TYPE_BYTES else value


def _scalar_problem(field: FieldDescriptor, value: object) -> str | None:
    """What was expected instead of the value; None when it fits."""
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


def _shown(value: object) -> str:
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
