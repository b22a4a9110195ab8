"""Enums between Python and protobuf: members are the values' names in lower case, without the prefix of all."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any


def number_of(enum: Any, member: StrEnum) -> int | None:
    """The number of a member; None for one that the enum lacks."""
    return _numbers(enum, type(member)).get(member)


def enum_converters(enum: Any, hint: type[StrEnum]) -> tuple[Callable[[Any], int], Callable[[int], Any]]:
    """A member by its number and back; a value that the type lacks is `unspecified`, or else the first that it has."""
    numbers = _numbers(enum, hint)
    members = {number: member for member, number in numbers.items()}
    unknown = members[min(members)]
    return numbers.__getitem__, lambda number: members.get(number, unknown)


def _numbers(enum: Any, hint: type[StrEnum]) -> dict[StrEnum, int]:
    """Numbers of the members that both sides know."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    by_name = {value.name.removeprefix(prefix).lower(): value.number for value in enum.values}
    return {member: by_name[member.value] for member in hint if member.value in by_name}
