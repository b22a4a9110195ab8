"""Matches the regular expressions of an adapter's config, in time linear in what is matched.

They come from strangers, so they run in RE2, which neither backtracks nor grows. Where RE2 and Python could
differ (look-around, back-references, POSIX classes), the expression is refused instead.
"""

import re
from functools import lru_cache
from typing import Any

import re2  # type: ignore[import-untyped]

MAX_PATTERN_CHARS = 4_096
_MAX_PROGRAM_BYTES = 4 * 1024 * 1024
_PLAIN = re.compile(r"[A-Za-z0-9_]+")
_DIFFERS = re.compile(r"\[\[|\[:|\\[CXQEzpPkhHRK]|\(\?[^:P]|\(\?P[^<]")


class PatternError(ValueError):
    """An expression that cannot be matched exactly in bounded time."""


class Pattern:
    """One expression, with the two ways in which PEFT matches it; raises PatternError when it cannot be."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._is_plain = _PLAIN.fullmatch(text) is not None
        _check(text)
        self._whole = _compile(f"(?:{text})")
        self._end = _compile(rf"(?:.*\.)?(?:{text})")

    def matches_whole(self, path: str) -> bool:
        """As `re.fullmatch(text, path)` (PEFT, `match_target_against_key`)."""
        return self._whole.fullmatch(path) is not None

    def matches_end(self, path: str) -> bool:
        """As `re.match(rf"(.*\\.)?({text})$", path)` (PEFT, `get_pattern_key`)."""
        if self._is_plain:
            return path == self.text or path.endswith("." + self.text)
        return self._end.fullmatch(path) is not None


def _check(text: str) -> None:
    if len(text) > MAX_PATTERN_CHARS:
        raise PatternError(f"it has {len(text)} characters, at most {MAX_PATTERN_CHARS} are taken")
    if _DIFFERS.search(text):
        raise PatternError("it uses flags, look-around, back-references or classes outside of the safe subset")
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as exc:
        raise PatternError(f"it is no regular expression: {exc}") from exc


@lru_cache(maxsize=4_096)
def _compile(text: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_PROGRAM_BYTES
    try:
        return re2.compile(text, options)
    except re2.error as exc:
        raise PatternError(f"it cannot be matched in bounded time: {exc}") from exc
