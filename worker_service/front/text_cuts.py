"""Cuts of a text at which the token ids of its pieces, side by side, are those of the whole."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from worker_service.front.token_bound import is_exhaustive, parts_of, replaces_one

_CUT = re.compile(r"[A-Za-z](?= [A-Za-z])")
_NORMALISERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"})
_PUNCTUATION = ("Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext")
# Patterns that match from left to right, see no further back than where a match begins, and end each match at the last
# letter before a space: those of GPT-2, of GPT-4 (Llama 3 and Qwen 2 too) and of GPT-4o, in their usual spellings.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATTERNS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        *(
            rf"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
            for contractions in (_CONTRACTIONS, "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
            for digits in (r"\p{N}", r"\p{N}{1,3}")
        ),
        *(
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{ending}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{ending}"
            rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
            for ending in ("", f"{_CONTRACTIONS}?")
            for digits in (r"\p{N}", r"\p{N}{1,3}")
        ),
    }
)


class TextCuts:
    """Cuts between a letter and a space before another letter, all three of ASCII.

    No normaliser that is taken here looks past those, pre-tokenizers cut there too, or no token of the vocabulary
    reaches over such a place, and so none that merges on the way to one: on either side of it the model does what it
    would do alone.
    """

    def __init__(self, backend: Tokenizer) -> None:
        """Raises ValueError for a tokenizer of which that is not known."""
        normalisers = parts_of(backend.normalizer, "normalizers")
        cutters = parts_of(backend.pre_tokenizer, "pretokenizers")
        _require(type(backend.model).__name__ == "BPE" and not backend.model.dropout, "model")
        self._drops_space = any(part["type"] == "Prepend" for part in normalisers)
        spans = re.compile("^[A-Za-z]|[A-Za-z][ ▁]" if self._drops_space else "[A-Za-z][ ▁]")
        for token in backend.get_added_tokens_decoder().values():
            is_apart = not (token.rstrip or token.single_word or spans.search(token.content))
            _require(is_apart, f"token {token.content!r}")
        space = _space_after(normalisers)
        for part in cutters:
            _require(_is_known(part, space), f"pre-tokenizer {part}")
        if not any(map(_cuts_there, cutters)):
            unit = "Ġ" if any(part["type"] == "ByteLevel" for part in cutters) else space
            over = re.compile(f"[A-Za-z]{re.escape(unit)}")
            _require(not any(over.search(token) for token in backend.get_vocab(with_added_tokens=False)), "vocabulary")

    def pieces(self, text: str, chars: int) -> Iterator[str]:
        """The text in pieces of about so many characters, longer ones where it cannot be cut."""
        begin = 0
        while begin < len(text):
            cut = _CUT.search(text, begin + chars)
            end = cut.end() if cut is not None else len(text)
            yield text[begin:end]
            # A normaliser that puts a space before what it gets makes up for the one that is left out.
            begin = end + (self._drops_space and end < len(text))


def _space_after(normalisers: list[dict[str, Any]]) -> str:
    """Text of a space after all normalisers. Raises ValueError for those that may look past one."""
    space, prepended = " ", None
    for part in normalisers:
        if part["type"] == "Prepend":
            _require(prepended is None and space == " ", "Prepend")
            prepended = part["prepend"]
        elif replaces_one(part):
            pattern, content = part["pattern"]["String"], part["content"]
            _require(not re.fullmatch("[A-Za-z]", pattern) and len(content) == 1, "Replace")
            space = content if pattern == space else space
        else:
            _require(part["type"] in _NORMALISERS, f"normalizer {part['type']}")
    _require(prepended is None or prepended == space, "Prepend")
    return space


def _is_known(part: Mapping[str, Any], space: str) -> bool:
    kind = part["type"]
    if kind == "Split":
        if part["pattern"].get("String") == " ":
            return space != " "
        behaves = part["behavior"] == "Isolated" and not part["invert"]
        behaves |= part["behavior"] == "Removed" and bool(part["invert"]) and is_exhaustive(part)
        return behaves and part["pattern"].get("Regex") in _PATTERNS
    if kind == "Punctuation":
        return part["behavior"] in _PUNCTUATION
    return kind in ("ByteLevel", "Metaspace", "Digits")


def _cuts_there(part: Mapping[str, Any]) -> bool:
    """Tell whether a pre-tokenizer cuts at every place that is cut here."""
    if part["type"] == "Split":
        return "Regex" in part["pattern"]
    return bool(part.get("use_regex") if part["type"] == "ByteLevel" else part.get("split"))


def _require(known: bool, what: str) -> None:
    if not known:
        raise ValueError(f"{what}: it is not known where texts can be cut")
