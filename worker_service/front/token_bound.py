"""The fewest tokens that a text can become, told from its characters alone, for tokenizers of which that is known."""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer, models

# Normalisers that change each character by itself, whatever is beside it.
_DELETING = frozenset({"StripAccents", "BertNormalizer", "Nmt"})
_BY_CHARACTER = frozenset({"Lowercase", "NFD", "NFKD", "ByteLevel"}) | _DELETING
_COMPOSING = frozenset({"NFC", "NFKC"})
_ADDING = frozenset({"Prepend", "Append"})
# Parts that cut texts and lose nothing, but the white space that those of the second kind leave out.
_CUTTING = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"})
_LOSING_SPACE = frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer"})
MOST_COMPOSED = 4
"""Code points that compose to one, at most: https://www.unicode.org/faq/normalization.html, expansion of NFD."""
MOST_KNOWN = 65_536
"""Characters whose weights are kept."""


class TokenBound:
    """Weights of characters: those of a text add up to no more than its tokens.

    A token has at most `len(token)` characters, each with a weight of 1 / (length of the longest token that has it), so
    the weights of a token's characters add up to 1 at most. A character that a tokenizer may drop, or put into one
    token with any number of others, weighs nothing.
    """

    def __init__(self, backend: Tokenizer) -> None:
        """Takes a second for a large vocabulary. Raises ValueError where nothing is known of a part of it."""
        normalisers = parts_of(backend.normalizer, "normalizers")
        cutters = parts_of(backend.pre_tokenizer, "pretokenizers")
        added = list(backend.get_added_tokens_decoder().values())
        self._form = next((part["type"] for part in normalisers if part["type"] in _COMPOSING), None)
        self._changed_by = _by_character(normalisers)
        kinds = {part["type"] for part in (*normalisers, *cutters)}
        if {"ByteLevel", "Metaspace"} <= kinds:
            raise ValueError("nothing is known of tokenizers with both ByteLevel and Metaspace")
        for part in cutters:
            _check_cutter(part)
        self._with_space = not any(token.lstrip or token.rstrip for token in added) and not kinds & _LOSING_SPACE
        self._space = next((part["replacement"] for part in cutters if part["type"] == "Metaspace"), " ")
        self._as_bytes = byte_alphabet() if any(part["type"] == "ByteLevel" for part in cutters) else None
        vocabulary = backend.get_vocab(with_added_tokens=False)
        self._longest = _longest_by_character(vocabulary)
        self._singles = frozenset(token for token in vocabulary if len(token) == 1)
        self._knows_all = _knows_all(backend.model, vocabulary) or (
            self._as_bytes is not None and self._singles.issuperset(self._as_bytes.values())
        )
        contents = [token.content for token in added]
        self._caps = _longest_by_character([*contents, *map(self._changed, contents)])
        longest = max([1, *self._longest.values(), *self._caps.values()])
        self._least = 1 / longest / MOST_COMPOSED if self._knows_all and not kinds & _DELETING else 0.0
        self._known: dict[str, float] = {}

    def of(self, text: str) -> float:
        """No more than the tokens of this text; for the parts of a text this adds up to no more than its tokens."""
        counts = Counter(text)
        if self._form is None or text.isascii():
            return self._sum(counts)
        if self._is_composed(text, counts):
            # Its first characters may compose with the last one of the part before it.
            return max(self._sum(counts) - MOST_COMPOSED, 0.0)
        spaces = 0 if self._with_space else sum(count for char, count in counts.items() if char.isspace())
        return max(self._least * (len(text) - spaces) - MOST_COMPOSED, 0.0)

    def _sum(self, counts: Mapping[str, int]) -> float:
        return math.fsum(count * self._weight(char) for char, count in counts.items())

    def _is_composed(self, text: str, characters: Iterable[str]) -> bool:
        """Tell whether composing leaves a text as it is, in this and in any other version of Unicode."""
        assert self._form is not None
        if not unicodedata.is_normalized(self._form, text):
            return False
        return all(unicodedata.category(char) != "Cn" for char in characters)

    def _weight(self, char: str) -> float:
        weight = self._known.get(char)
        if weight is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            weight = self._known[char] = self._new_weight(char)
        return weight

    def _new_weight(self, char: str) -> float:
        if char.isspace() and not self._with_space:
            return 0.0
        changed = self._changed(char)
        cap = max((self._caps.get(c, 0) for c in (char, *changed)), default=0)
        units = changed.replace(" ", self._space)
        if self._as_bytes is not None:
            units = "".join(self._as_bytes[byte] for byte in units.encode(errors="replace"))
        known = units if self._knows_all else [unit for unit in units if unit in self._singles]
        weight = math.fsum(1 / self._longest.get(unit, 1) for unit in known)
        return min(weight, 1 / cap) if cap else weight

    def _changed(self, text: str) -> str:
        return str(self._changed_by.normalize_str(text)) if self._changed_by is not None else text


def parts_of(part: Any, members: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as its parts, in order, in the form of `tokenizer.json`."""
    if part is None:
        return []
    document = json.loads(part.__getstate__())
    return list(document[members]) if document["type"] == "Sequence" else [document]


def _by_character(normalisers: list[dict[str, Any]]) -> Any:
    """Normaliser of a character beside others, or None. Raises ValueError for parts that look further."""
    kept: list[dict[str, Any]] = []
    for part in normalisers:
        kind = part["type"]
        if kind in _BY_CHARACTER or replaces_one(part):
            kept.append(part)
        elif (kind not in _COMPOSING or kept) and kind not in _ADDING:
            raise ValueError(f"nothing is known of what normalizer {kind} leaves of a text")
    if not kept:
        return None
    document = json.loads(Tokenizer(models.BPE()).to_str())
    document["normalizer"] = {"type": "Sequence", "normalizers": kept}
    return Tokenizer.from_str(json.dumps(document)).normalizer


def replaces_one(part: Mapping[str, Any]) -> bool:
    """Tell whether a normalizer replaces a single character wherever it stands."""
    return part["type"] == "Replace" and len(part["pattern"].get("String", "")) == 1


def _check_cutter(part: dict[str, Any]) -> None:
    kind = part["type"]
    keeps = kind in ("Split", "Punctuation") and part["behavior"] != "Removed"
    keeps |= kind == "Split" and part.get("invert") is True and part["behavior"] == "Removed" and is_exhaustive(part)
    if kind not in _CUTTING and kind not in _LOSING_SPACE and not keeps:
        raise ValueError(f"nothing is known of what pre-tokenizer {kind} leaves of a text")


def is_exhaustive(part: Mapping[str, Any]) -> bool:
    """Tell whether a pattern matches every character, so that leaving out what is between its matches loses nothing."""
    return str(part["pattern"].get("Regex", "")).endswith(r"\s+(?!\S)|\s+")


def _longest_by_character(tokens: Iterable[str]) -> dict[str, int]:
    longest: dict[str, int] = {}
    for token in tokens:
        size = len(token)
        for char in set(token):
            if longest.get(char, 0) < size:
                longest[char] = size
    return longest


def _knows_all(model: Any, vocabulary: Mapping[str, int]) -> bool:
    """Tell whether a model puts every character into a token, and unknown ones into one of their own. Raises
    ValueError.

    One that does not still does so with characters that are tokens themselves.
    """
    kind = type(model).__name__
    if kind not in ("BPE", "Unigram"):
        raise ValueError(f"a {kind} model may make one token of any text")
    if kind == "Unigram":
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix or model.dropout:
        raise ValueError("nothing is known of models with affixes or dropout")
    has_bytes = model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    return has_bytes or (model.unk_token is not None and not model.fuse_unk)


def byte_alphabet() -> dict[int, str]:
    """The characters that stand for bytes: https://github.com/openai/gpt-2/blob/master/src/encoder.py."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}
