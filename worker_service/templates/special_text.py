"""Special tokens that are written out in what a user says: found, and marked so that they stay text.

A mark is one character that occurs in nothing that the user or the template says. Inside of a special token's text it
goes through whatever a template does to strings (trimming, letter case, splitting, JSON), and the text is no special
token as long as it is there. Pure.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

# Characters that Unicode reserves for a program's own use: https://www.unicode.org/faq/private_use.html#noncharacters
MARKS = [chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xF0400))]


class SpecialTexts:
    """The texts of a model's special tokens."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Texts are looked for whatever the case of their letters: a template may change it.

        One of a single character has no inside for a mark, and stays what it is.
        """
        texts = [text for text in texts if len(text) > 1]
        lower = {low if len(low := text.lower()) == len(text) else text for text in texts}
        self._pattern = re.compile(pattern_of(lower), re.IGNORECASE) if texts else None
        self._beginnings = {text[:size] for text in lower for size in range(1, len(text))}
        self._ends = {text[size:] for text in lower for size in range(1, len(text))}
        self._longest = max(map(len, lower), default=0)

    def occur_in(self, strings: Iterable[str]) -> bool:
        """Tell whether a string holds a special token's text, or may be joined to one with its neighbours."""
        return any(self._places(text) for text in strings)

    def marked(self, text: str, mark: str) -> str:
        """The text with a mark in each special token's text, and in what may become one when it is joined to others."""
        out, position = [], 0
        for place in self._places(text):
            out += [text[position:place], mark]
            position = place
        return "".join(out) + text[position:]

    def kept(self, text: str, mark: str) -> bool:
        """Tell whether marks make a difference in a text: whether without them there would be more special tokens."""
        if self._pattern is None:
            return False
        bare = without(text, mark)
        return len(self._pattern.findall(bare)) != len(self._pattern.findall(text))

    def _places(self, text: str) -> list[int]:
        """Positions of marks, in order."""
        if self._pattern is None:
            return []
        places = set()
        match = self._pattern.search(text)
        while match is not None:
            places.add(match.start() + 1)
            match = self._pattern.search(text, match.start() + 1)
        # A word is a role or a name that templates compare, and joins to no special token by itself.
        if not text.isidentifier():
            places.update(self._edges(text))
        return sorted(places)

    def _edges(self, text: str) -> Iterator[int]:
        """The end of a text that ends as a special token begins, and the beginning of one that begins as one ends."""
        begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
        sizes = range(1, min(self._longest, end - begin) + 1)
        if any(text[end - size : end].lower() in self._beginnings for size in sizes):
            yield end
        if any(text[begin : begin + size].lower() in self._ends for size in sizes):
            yield begin


def free_mark(strings: Iterable[str]) -> str:
    """A mark that occurs in none of the strings, as it is or as JSON and Python write it; raises ValueError."""
    taken = "\n".join(strings)
    for mark in MARKS:
        if mark not in taken and not any(written in taken for written in _escapes(mark)):
            return mark
    raise ValueError("it holds every character that is reserved for marking special tokens")


def without(text: str, mark: str) -> str:
    """The text without marks, however a template has written them."""
    for written in (mark, *_escapes(mark)):
        text = text.replace(written, "")
    return text


def _escapes(mark: str) -> tuple[str, ...]:
    code = ord(mark)
    if code < 0x10000:
        return f"\\u{code:04x}", f"\\u{code:04X}"
    high, low = 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + ((code - 0x10000) & 0x3FF)
    return f"\\U{code:08x}", f"\\u{high:04x}\\u{low:04x}"


def strings_of(value: Any) -> Iterable[str]:
    """Every string in a value made of JSON's types, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from strings_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_of(item)


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): changed(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [changed(item, change) for item in value]
    return value


def pattern_of(texts: Iterable[str]) -> str:
    """A pattern of the longest text at a place, whose matching takes a text's length and not the number of texts."""
    trie: dict[str, Any] = {}
    for text in texts:
        node = trie
        for letter in text:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _alternatives(trie)


def _alternatives(node: dict[str, Any]) -> str:
    branches = [re.escape(letter) + _alternatives(below) for letter, below in node.items() if letter]
    if not branches:
        return ""
    pattern = branches[0] if len(branches) == 1 else "(?:" + "|".join(branches) + ")"
    return f"(?:{pattern})?" if "" in node else pattern
