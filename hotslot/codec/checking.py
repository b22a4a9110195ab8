"""Builds every message that the client sends, each value held against its field in the proto descriptor.

Protobuf refuses what does not fit with a TypeError, a ValueError or a UnicodeEncodeError that names no field, and takes
some of it silently (True for an int, the letters of a str for a list). Here all of it is one InvalidRequestError.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from hotslot.codec.enums import number_of
from hotslot.codec.table import codec_of, type_bound_to
from hotslot.codec.wrong_values import NOUNS, is_plain, items_of, mismatch, plain, scalar_problem, shown
from hotslot.contract.generation import GenerationRequest
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.pb.hotslot.worker.v1 import inference_pb2

M = TypeVar("M", bound=Message)

MAX_PROBLEMS = 16
"""More fields than this are not named in one error."""


def build(kind: type[M], values: Mapping[str, object] | None = None, /, **more: object) -> M:
    """Make a message of its fields' values; None leaves a field unset where that differs from its zero.

    A message in it is given as a value of the type that is bound to it, or as a mapping of its fields. Raises
    InvalidRequestError that names every field whose value has the wrong type, is outside of the field's range, is not
    finite, or is text that UTF-8 cannot express.
    """
    return _built(kind, {**(values or {}), **more}, is_typed=False)


def request_to_proto(
    request: GenerationRequest | str | inference_pb2.GenerateRequest,
) -> inference_pb2.GenerateRequest:
    """Encode a request; a string is the prompt of one, and one that is encoded already stays as it is.

    Raises InvalidRequestError for values that the message cannot hold. Their meaning is the worker's to check.
    """
    kind = inference_pb2.GenerateRequest
    if isinstance(request, kind):
        return request
    value: object = GenerationRequest(request) if isinstance(request, str) else request
    codec = codec_of(type(value), kind.DESCRIPTOR)
    if codec is None:
        raise InvalidRequestError([mismatch("request", request, "GenerationRequest or a string")])
    return _built(kind, codec.outline(value), is_typed=True)


def _built(kind: type[M], values: Mapping[str, object], *, is_typed: bool) -> M:
    problems: list[FieldViolation] = []
    made = _Builder(problems).build(kind.DESCRIPTOR, values, "", is_typed=is_typed)
    if problems:
        raise InvalidRequestError(problems[:MAX_PROBLEMS])
    assert isinstance(made, kind)
    return made


class _Builder:
    """Walks one message's descriptor and values, and collects what is wrong.

    Below a value of a type everything is of the types that are bound; else mappings may stand for messages.
    """

    def __init__(self, problems: list[FieldViolation]) -> None:
        self._problems = problems

    def build(self, descriptor: Any, values: Mapping[str, object], path: str, *, is_typed: bool) -> Message:
        """Make a message; what is wrong is left out and noted."""
        made: dict[str, object] = {}
        for name, value in values.items():
            field = descriptor.fields_by_name[name]
            place = f"{path}{_oneof(field)}{name}"
            if value is None and field.has_presence:
                continue
            noted = len(self._problems)
            found = self._field(field, value, place, is_typed=is_typed)
            if len(self._problems) == noted:
                made[name] = found
        return GetMessageClass(descriptor)(**made)

    def _field(self, field: FieldDescriptor, value: object, path: str, *, is_typed: bool) -> object:
        message_type = field.message_type
        if message_type is not None and message_type.GetOptions().map_entry:
            return self._map(message_type, value, path)
        if field.is_repeated:
            return self._list(field, value, path, is_typed=is_typed)
        return self._single(field, value, path, is_typed=is_typed)

    def _single(self, field: FieldDescriptor, value: object, path: str, *, is_typed: bool) -> object:
        if field.message_type is not None:
            return self._message(field.message_type, value, path, is_typed=is_typed)
        if field.enum_type is not None and isinstance(value, StrEnum):
            value = number_of(field.enum_type, value)
        problem = scalar_problem(field, value)
        if problem is not None:
            self._problems.append(mismatch(path, value, problem))
            return None
        return plain(field, value)

    def _message(self, descriptor: Descriptor, value: object, path: str, *, is_typed: bool) -> object:
        codec, bound = codec_of(type(value), descriptor), type_bound_to(descriptor)
        if codec is not None:
            return self.build(descriptor, codec.outline(value), f"{path}.", is_typed=True)
        if not isinstance(value, Mapping) or (is_typed and bound is not None):
            expected = bound.__name__ if bound is not None else "a mapping of its fields"
            self._problems.append(mismatch(path, value, expected))
            return None
        return self.build(descriptor, value, f"{path}.", is_typed=is_typed)

    def _list(self, field: FieldDescriptor, value: object, path: str, *, is_typed: bool) -> list[object]:
        items = items_of(value)
        if items is None:
            self._problems.append(mismatch(path, value, f"a sequence of {_expected(field)}"))
            return []
        if is_plain(field, items):
            return items
        made = []
        for index, item in enumerate(items):
            if len(self._problems) >= MAX_PROBLEMS:
                break
            made.append(self._single(field, item, f"{path}[{index}]", is_typed=is_typed))
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
            place = f"{path}[{shown(key)}]"
            made[self._single(key_field, key, place, is_typed=False)] = self._single(
                value_field, item, place, is_typed=False
            )
        return made


def _expected(field: FieldDescriptor) -> str:
    if field.message_type is None:
        return f"{NOUNS.get(field.cpp_type, 'integer')}s"
    bound = type_bound_to(field.message_type)
    return bound.__name__ if bound is not None else str(field.message_type.name)


def _oneof(field: FieldDescriptor) -> str:
    """Name of the choice that the field is one of, as a beginning of its path."""
    oneof = field.containing_oneof
    return f"{oneof.name}." if oneof is not None and len(oneof.fields) > 1 else ""
