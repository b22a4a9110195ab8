"""One JSON object that may be a call of a tool, read as its text comes, whatever pieces that is cut into. Pure."""

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import Enum, auto

ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
KEYS = ARGUMENT_KEYS | {"name", "type", "id"}
"""Keys of calls; an object that begins with another one is no call."""
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class CallName:
    """Beginning of a call: its place among the answer's calls, and its tool's name."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """Piece of a call's arguments, a JSON object as the model wrote it."""

    index: int
    text: str


class _Place(Enum):
    """Place in the object; nested values are passed over as a whole."""

    BEFORE = auto()
    KEY_OR_END = auto()
    KEY = auto()
    COLON = auto()
    BEFORE_VALUE = auto()
    VALUE = auto()
    AFTER_VALUE = auto()


class CallObject:
    """An object that is being read. A call is told once its name is known, and is not taken back."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._raw: list[str] = []
        self._place = _Place.BEFORE
        self._part: list[str] = []
        """Text of the key or value that is being read."""
        self._depth = 0
        """Objects and lists that are open in the value."""
        self._in_string = self._is_escaped = False
        self._key = ""
        self._has_keys = False
        self._arguments: str | None = None
        """Arguments, from their end on."""
        self._is_streaming = False
        self._untold: list[str] = []
        """Arguments that the current feed has read."""
        self.name = ""
        self.is_over = False
        """True once the object has ended, or cannot go on after it was told."""
        self.is_none = False
        """True once it is known to be no call."""

    @property
    def raw(self) -> str:
        """Everything that was read."""
        return "".join(self._raw)

    def feed(self, text: str) -> Generator[CallName | CallArguments, None, str]:
        """Read on; yields what is sure, and returns what follows the object."""
        for position, char in enumerate(text):
            was_named = bool(self.name)
            is_taken = self._take(char)
            if is_taken:
                self._raw.append(char)
            if self.name and not was_named:
                yield CallName(self._index, self.name)
            if self.is_none or self.is_over:
                yield from self._pieces()
                return text[position + is_taken :]
        yield from self._pieces()
        return ""

    def _pieces(self) -> Iterator[CallArguments]:
        if self._untold and self.name and not self.is_none:
            yield CallArguments(self._index, "".join(self._untold))
            self._untold.clear()

    def _take(self, char: str) -> bool:
        """Read one character; False where it belongs to what follows."""
        if char in _SPACE and self._place not in (_Place.KEY, _Place.VALUE):
            return True
        match self._place:
            case _Place.BEFORE if char == "{":
                self._place = _Place.KEY_OR_END
            case _Place.KEY_OR_END if char == '"':
                self._place, self._part, self._in_string = _Place.KEY, [char], True
            case _Place.KEY:
                self._string(char)
                if not self._in_string:
                    self._end_key()
            case _Place.COLON if char == ":":
                self._place = _Place.BEFORE_VALUE
            case _Place.BEFORE_VALUE if char not in "},:]":
                self._place, self._part, self._depth = _Place.VALUE, [], 0
                is_object = char == "{" and self._key in ARGUMENT_KEYS and self._arguments is None
                self._is_streaming = is_object and bool(self.name)
                self._value(char)
            case _Place.VALUE if self._depth or self._in_string or char not in ",}" + _SPACE:
                self._value(char)
            case _Place.VALUE:
                self._end_value()
                return self.is_none or self._take(char)
            case _Place.AFTER_VALUE if char == ",":
                self._place = _Place.KEY_OR_END
            case _Place.AFTER_VALUE | _Place.KEY_OR_END if char == "}":
                self._end()
            case _:
                return self._fail()
        return True

    def _string(self, char: str) -> None:
        """Follow a string to its end."""
        self._part.append(char)
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._in_string = False

    def _value(self, char: str) -> None:
        if self._is_streaming:
            self._untold.append(char)
        if self._in_string:
            self._string(char)
        else:
            self._part.append(char)
            self._in_string = char == '"'
            self._depth += (char in "{[") - (char in "}]")
        if not self._depth and not self._in_string and char in '}]"':
            self._end_value()

    def _end_key(self) -> None:
        self._key = _text("".join(self._part)) or ""
        self._place = _Place.COLON
        if not self._has_keys and self._key not in KEYS:
            self._fail()
        self._has_keys = True

    def _end_value(self) -> None:
        self._place, value = _Place.AFTER_VALUE, "".join(self._part)
        if self._key == "name" and not self.name:
            self.name = _text(value) or ""
            if not self.name:
                self._fail()
        elif self._key in ARGUMENT_KEYS and self._arguments is None:
            self._arguments = value
            if not self._is_streaming:
                self._untold.append(_arguments(value))
        self._is_streaming = False

    def _end(self) -> None:
        self.is_over, self.is_none = bool(self.name), not self.name
        if self.name and self._arguments is None:
            self._untold.append("{}")

    def _fail(self) -> bool:
        """The character is not the object's: what was told stays told."""
        self.is_over, self.is_none = bool(self.name), not self.name
        return False


def _text(value: str) -> str | None:
    """A JSON string's text; None for anything else."""
    try:
        found = json.loads(value)
    except ValueError:
        return None
    return found if isinstance(found, str) else None


def _arguments(value: str) -> str:
    """Arguments as an object's text, from an object, its text within a string, or nothing."""
    return "{}" if value == "null" else _text(value) or value
