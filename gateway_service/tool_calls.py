"""Calls of tools in the text of an answer, as the text comes: pieces of content, names, and pieces of arguments. Pure.

A parser is fed with the text in any pieces and tells the same, however it is cut. Arguments are told as they come, as
the model wrote them. What only looks like a call is content.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Protocol

from gateway_service.call_objects import CallArguments, CallName, CallObject

OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
"""Token that Llama 3.1 begins a call with; a special one, which most answers are without."""


class ToolFormat(StrEnum):
    """Format in which a model writes calls."""

    HERMES = "hermes"
    """`<tool_call>{"name": …, "arguments": …}</tool_call>`, as Hermes, Qwen 2.5 and Qwen 3 write."""
    LLAMA3_JSON = "llama3_json"
    """The whole answer is `{"name": …, "parameters": …}`, several after `;`, as Llama 3.1 and 3.2 write."""


@dataclass(frozen=True, slots=True)
class CallContent:
    """Text that is no call."""

    text: str


CallEvent = CallContent | CallName | CallArguments


class CallParser(Protocol):
    """Parser of one answer."""

    def feed(self, text: str) -> Iterator[CallEvent]:
        """Take more text; yields what it tells, as far as that is sure."""
        ...

    def finish(self) -> Iterator[CallEvent]:
        """Take the end; yields what was held back."""
        ...


def parser_of(format_: ToolFormat) -> CallParser:
    """A parser for one answer."""
    return HermesParser() if format_ is ToolFormat.HERMES else Llama3Parser()


class _Part(Enum):
    """Place in an answer with tags."""

    CONTENT = auto()
    CALL = auto()
    TAIL = auto()
    """Behind a call, before its closing tag."""
    BETWEEN = auto()
    """Behind a closing tag, where space says nothing."""


class HermesParser:
    """Calls between tags, with any text around them."""

    def __init__(self) -> None:
        self._held = ""
        """Text that may be the end of content, a part of a tag, or the space around one."""
        self._place = _Part.CONTENT
        self._call = CallObject(0)
        self._opening = ""
        """Space and tag before the call: told with it where it is none after all."""
        self._count = 0

    def feed(self, text: str) -> Iterator[CallEvent]:
        """Take more text."""
        self._held += text
        before = None
        while self._held and (self._held, self._place) != before:
            before = self._held, self._place
            match self._place:
                case _Part.CALL:
                    yield from self._of_call()
                case _Part.TAIL:
                    self._of_tail()
                case _Part.BETWEEN:
                    self._held = self._held.lstrip()
                    self._place = _Part.CONTENT if self._held else _Part.BETWEEN
                case _Part.CONTENT:
                    yield from self._of_content()

    def finish(self) -> Iterator[CallEvent]:
        """Take the end."""
        if self._place is _Part.CALL and not self._call.name:
            yield from _content(self._opening + self._call.raw)
        elif self._place is _Part.CONTENT:
            yield from _content(self._held)
        self._held, self._place = "", _Part.BETWEEN

    def _of_content(self) -> Iterator[CallEvent]:
        begin = self._held.find(OPEN)
        if begin >= 0:
            content = self._held[:begin].rstrip()
            yield from _content(content)
            self._begin(self._held[len(content) : begin + len(OPEN)])
            self._held = self._held[begin + len(OPEN) :]
            return
        sure = self._held[: len(self._held) - _overlap(self._held, OPEN)].rstrip()
        yield from _content(sure)
        self._held = self._held[len(sure) :]

    def _begin(self, opening: str) -> None:
        self._place, self._opening, self._call = _Part.CALL, opening, CallObject(self._count)

    def _of_call(self) -> Iterator[CallEvent]:
        text, self._held = self._held, ""
        self._held = yield from self._call.feed(text)
        if self._call.is_over:
            self._count += 1
            self._place = _Part.TAIL
        elif self._call.is_none:
            self._place = _Part.CONTENT
            yield from _content(self._opening + self._call.raw)

    def _of_tail(self) -> None:
        self._held = self._held.lstrip()
        if self._held.startswith(CLOSE):
            self._held, self._place = self._held[len(CLOSE) :], _Part.BETWEEN
        elif self._held.startswith("{"):
            self._begin("")
        elif not CLOSE.startswith(self._held):
            self._place = _Part.CONTENT


class Llama3Parser:
    """An answer that is calls from its beginning to its end, or content."""

    def __init__(self) -> None:
        self._held = ""
        self._call: CallObject | None = None
        self._opening = ""
        """Whatever was before the call: told with it where it is none after all."""
        self._count = 0
        self._is_content = False

    def feed(self, text: str) -> Iterator[CallEvent]:
        """Take more text."""
        self._held += text
        while self._held:
            if self._is_content:
                yield from _content(self._held)
                self._held = ""
            elif self._call is not None:
                yield from self._of_call(self._call)
            elif not self._begun():
                return

    def finish(self) -> Iterator[CallEvent]:
        """Take the end."""
        if self._call is not None:
            yield from _content("" if self._call.name else self._opening + self._call.raw)
        elif not (self._count and not self._held.strip("; \n\t\r")):
            yield from _content(self._held)
        self._held, self._call = "", None

    def _begun(self) -> bool:
        """True once the held text is known to begin a call or content."""
        text = self._held.lstrip("; \n\t\r") if self._count else self._held.lstrip()
        if PYTHON_TAG.startswith(text[: len(PYTHON_TAG)]) and len(text) < len(PYTHON_TAG):
            return False
        text = text.removeprefix(PYTHON_TAG).lstrip()
        if not text:
            return False
        if text.startswith("{"):
            self._opening = self._held[: len(self._held) - len(text)]
            self._held, self._call = text, CallObject(self._count)
        else:
            self._is_content = True
        return True

    def _of_call(self, call: CallObject) -> Iterator[CallEvent]:
        text, self._held = self._held, ""
        rest = yield from call.feed(text)
        if call.is_over:
            self._count += 1
            self._call, self._held = None, rest
        elif call.is_none:
            self._call, self._held, self._is_content = None, self._opening + call.raw + rest, True


def _content(text: str) -> Iterator[CallEvent]:
    if text:
        yield CallContent(text)


def _overlap(text: str, tag: str) -> int:
    """Characters at the end of a text with which the tag begins."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
