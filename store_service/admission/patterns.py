"""Matches the regular expressions of an adapter's config, in time linear in what is matched.

They come from strangers, so they run in RE2, which neither backtracks nor grows. What RE2 does not take, or could
read differently (look-around, back-references, possessive repeats), Python's engine matches in a process of its own,
which is ended when it takes too long. What Python itself may read differently one day is refused.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import re2  # type: ignore[import-untyped]

from store_service.admission.match_budget import spend
from store_service.admission.python_matching import PythonMatcher, UnboundedMatchError

MAX_PATTERN_CHARS = 4_096
MAX_NAME_LAYOUTS = 512
_MAX_PROGRAM_BYTES = 256 * 1024
_NAME = re.compile(r"[A-Za-z0-9_.]+")
_MAY_CHANGE = re.compile(r"\[\[|\[:|&&|--|~~|\|\|")
_DIFFERS = re.compile(r"\{,|\\[CXQEzpPkhHRK]|\(\?[^:P]|\(\?P[^<]")
_GLOBAL_FLAGS = re.compile(r"\(\?([aimsux]+)\)")
_TOO_LARGE = ("too large", "repetition size")
"""In RE2's words: what would grow beyond its memory, as against what it has no syntax for."""
_Value = TypeVar("_Value")


class PatternError(ValueError):
    """An expression that cannot be matched exactly in bounded time."""


class Pattern:
    """One expression, with the two ways in which PEFT matches it; raises PatternError when it cannot be.

    One that is only asked about `ends` of paths must be right inside of the expression that PEFT puts it into.
    """

    def __init__(self, text: str, *, ends: bool = False) -> None:
        _check(text)
        if ends:
            _check_inside(text)
        self.text = text
        self.is_name = is_name(text)
        self._python: PythonMatcher | None = None
        if self.is_name:
            return
        whole = _compile(f"(?:{text})") if not _DIFFERS.search(text) else None
        end = _compile(rf"(?:.*\.)?(?:{text})") if whole is not None else None
        if whole is None or end is None:
            self._python = PythonMatcher(text)
        else:
            self._whole, self._end = whole, end

    @property
    def needs_python(self) -> bool:
        """True if only Python's own engine takes the expression."""
        return self._python is not None

    def matches_whole(self, path: str) -> bool:
        """As `re.fullmatch(text, path)` (PEFT, `match_target_against_key`); raises PatternError."""
        if self._python is not None:
            return self._matched(self._python, path, whole=True)
        return _is_named(path, self.text) if self.is_name else self._whole.fullmatch(path) is not None

    def matches_end(self, path: str) -> bool:
        """As `re.match(rf"(.*\\.)?({text})$", path)` (PEFT, `get_pattern_key`); raises PatternError."""
        if self._python is not None:
            return self._matched(self._python, path, whole=False)
        if self.is_name:
            return any(_is_named(end, self.text) for end in path_ends(path))
        return self._end.fullmatch(path) is not None

    def _matched(self, matcher: PythonMatcher, path: str, *, whole: bool) -> bool:
        try:
            return matcher.matches(path, whole=whole)
        except UnboundedMatchError as exc:
            advice = "write it without nested repeats, or name the modules in a list"
            raise PatternError(f"{self.text!r} cannot be matched: {exc}; {advice}") from exc


class PatternTable(Generic[_Value]):
    """Values by pattern, where the first pattern that matches the end of a path wins.

    Names may be as many as a model has modules, so they are looked up; expressions are tried one by one.
    """

    def __init__(self, items: Sequence[tuple[Pattern, _Value]] = ()) -> None:
        """Raises PatternError when the names have dots in so many ways that looking up would be no help."""
        self._values = [value for _, value in items]
        self._expressions = [(position, pattern) for position, (pattern, _) in enumerate(items) if not pattern.is_name]
        self._names: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        """Positions of names by their length and by where their dots are."""
        self._found: dict[str, int | None] = {}
        for position, (pattern, _) in enumerate(items):
            if pattern.is_name:
                dots = tuple(index for index, letter in enumerate(pattern.text) if letter == ".")
                self._names.setdefault((len(pattern.text), dots), {}).setdefault(pattern.text, position)
        if len(self._names) > MAX_NAME_LAYOUTS:
            raise PatternError(f"it has names of {len(self._names)} layouts, at most {MAX_NAME_LAYOUTS} are taken")

    def find(self, path: str, default: _Value) -> _Value:
        """The value of the first pattern that matches."""
        if not self._values:
            return default
        if path not in self._found:
            self._found[path] = self._position(path)
        position = self._found[path]
        return default if position is None else self._values[position]

    def _position(self, path: str) -> int | None:
        first = min(self._positions_of_names(path), default=None)
        spend()
        for position, pattern in self._expressions:
            spend()
            if first is not None and position > first:
                break
            if pattern.matches_end(path):
                return position
        return first

    def _positions_of_names(self, path: str) -> Iterator[int]:
        ends = {len(end): end for end in path_ends(path)}
        for (length, dots), names in self._names.items():
            end = ends.get(length)
            if end is not None:
                letters = list(end)
                for index in dots:
                    letters[index] = "." if letters[index] != "\n" else "\n"
                found = names.get("".join(letters))
                if found is not None:
                    yield found


def is_name(text: str) -> bool:
    """Tell whether a text has nothing but letters, digits, `_` and `.` (any character), so that it needs no engine."""
    return _NAME.fullmatch(text) is not None


def path_ends(path: str) -> Iterator[str]:
    """The path and everything behind one of its dots: `a.b.c`, `b.c`, `c`."""
    yield path
    while "." in path:
        path = path.partition(".")[2]
        yield path


def _is_named(path: str, name: str) -> bool:
    return len(path) == len(name) and all(
        theirs == ours or (ours == "." and theirs != "\n") for theirs, ours in zip(path, name, strict=True)
    )


def _check(text: str) -> None:
    if len(text) > MAX_PATTERN_CHARS:
        raise PatternError(f"it has {len(text)} characters, at most {MAX_PATTERN_CHARS} are taken")
    if found := _MAY_CHANGE.search(text):
        raise PatternError(f"{found[0]!r} may mean something else in later versions of Python; escape it")
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as exc:
        raise PatternError(f"it is no regular expression: {exc}") from exc


def _check_inside(text: str) -> None:
    try:
        re.compile(rf"(.*\.)?({text})$")
    except (re.error, OverflowError, RecursionError) as exc:
        flags = _GLOBAL_FLAGS.match(text)
        advice = f"; write '(?{flags[1]}:{text[flags.end() :]})'" if flags is not None else ""
        problem = "PEFT puts it inside of a larger expression, where it is none"
        raise PatternError(f"{problem}: {exc}{advice}") from exc


def _compile(text: str) -> Any:
    """In RE2; None for a syntax that it does not know. Raises PatternError for what grows too large."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_PROGRAM_BYTES
    try:
        return re2.compile(text, options)
    except re2.error as exc:
        if any(words in str(exc) for words in _TOO_LARGE):
            raise PatternError(f"it cannot be matched in bounded time: {exc}") from exc
        return None
