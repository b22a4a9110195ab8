"""Bindings: a type of the contract with the message that it is the twin of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

Through = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""A field's value as the message has it, and back."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A type and its message. Fields have the same names, but for those that `names` has, and:

    `X_s` is a Duration `X`, `X_time` (or `X_time_s`) a Timestamp `X_time`; an enum's members are its values' names in
    lower case without their prefix; None is an unset field; a tuple is a repeated field; a type of the contract is the
    message that it is bound to; a field that is called like a oneof takes a value of any of its kinds. A field with
    presence reads as the type's default where it is unset.
    """

    kind: type[Any]
    message: type[Message]
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of the message's fields by the type's, where they differ."""
    through: Mapping[str, Through] = field(default_factory=dict)
    """Conversions of single fields, by the type's name."""
    extra: frozenset[str] = frozenset()
    """Fields of the type that no message carries; they have defaults."""
    spread: str = ""
    """A message in the message whose fields the type has as its own."""
    written: frozenset[str] = frozenset()
    """Properties of the type that are written, and not read."""
    is_part: bool = False
    """Covers a part of the message, for a type in which it is inline."""
    inline: str = ""
    """A field of the type whose own fields stand in the message directly, as another binding has them."""
    settle: Callable[[Any], Any] | None = None
    """Brings a user's short forms into the one that the message holds; raises InvalidRequestError."""
    after: Callable[[Any], Any] | None = None
    """Checks what was read; raises HotslotError."""


def reads_zero_as(default: object) -> Through:
    """A field without presence, whose zero means a default."""
    return (lambda value: value), (lambda value: value or default)


def omits(default: object) -> Through:
    """A field with presence that is not written where it holds its default."""
    return (lambda value: None if type(value) is type(default) and value == default else value), (lambda value: value)


NEGATED: Through = (lambda value: not value if isinstance(value, bool) else value), (lambda value: not value)
"""A boolean that the message has the other way round."""
