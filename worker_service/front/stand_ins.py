"""A copy of a tokenizer whose special tokens go by other texts, so that their own texts are only text.

All of a prompt is tokenised at once, as it always is: whatever a tokenizer does at the edges of special tokens, it does
here too, since nothing about them differs but the text that they are known by.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer as Backend

from hotslot.errors import FieldViolation, InvalidRequestError
from worker_service.templates.special_text import pattern_of, without

STAND_IN_CHARS = 12
# Characters of a private-use plane: no text has twelve of them in just this order.
_ALPHABET = [chr(code) for code in range(0xF1000, 0xF1400)]


class BackedTokenizer(Protocol):
    """A transformers tokenizer that the `tokenizers` library runs."""

    backend_tokenizer: Backend

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        ...


class StandIns:
    """The copy, and how to write prompts for it."""

    def __init__(self, tokenizer: BackedTokenizer) -> None:
        """Takes a second for a large vocabulary. Raises InvalidRequestError where the tokenizer cannot be copied so."""
        document = json.loads(tokenizer.backend_tokenizer.to_str())
        specials = {token["content"]: token["id"] for token in document["added_tokens"] if token["special"]}
        self._names = {text: "".join(secrets.choice(_ALPHABET) for _ in range(STAND_IN_CHARS)) for text in specials}
        self.backend_tokenizer = Backend.from_str(json.dumps(_renamed(document, self._names)))
        self._ids = frozenset(specials.values()) - {_unknown_id(document, specials)}
        self._pattern = re.compile(pattern_of(self._names) or "(?!)")
        for text, name in self._names.items():
            if self.encode(name, add_special_tokens=False) != tokenizer.encode(text, add_special_tokens=False):
                raise cannot_keep()

    def written(self, text: str, mark: str) -> tuple[str, int]:
        """The prompt as the copy takes it, special tokens by their other texts and marks gone; and how many it has."""
        text, num_specials = self._pattern.subn(lambda match: self._names[match[0]], text)
        return without(text, mark) if mark else text, num_specials

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def check(self, num_specials: int, token_ids: Sequence[int]) -> None:
        """Raise InvalidRequestError when there are more special tokens than were written."""
        if sum(token_id in self._ids for token_id in token_ids) > num_specials:
            raise cannot_keep()


def cannot_keep() -> InvalidRequestError:
    """Say that a special token's text cannot stay text."""
    problem = (
        "holds a special token's text, which this model's tokenizer cannot keep as text; allow_special_tokens lets it"
    )
    return InvalidRequestError([FieldViolation("chat.messages", problem + " be more than text")])


def _renamed(document: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer's description with other texts for its special tokens, wherever they are looked up by text."""
    model = document["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary = {names.get(text, text): token_id for text, token_id in vocabulary.items()}
    else:
        vocabulary = [[names.get(text, text), score] for text, score in vocabulary]
    model = {**model, "vocab": vocabulary}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]
    added = [{**token, "content": names.get(token["content"], token["content"])} for token in document["added_tokens"]]
    # A post-processor names its additions by text, and nothing is added to a chat.
    return {**document, "model": model, "added_tokens": added, "post_processor": None}


def _makes(merge: str | Sequence[str], names: Mapping[str, str]) -> bool:
    """Tell whether a merge makes a special token out of ordinary text, or goes on from one."""
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first in names or second in names or first + second in names


def _unknown_id(document: Mapping[str, Any], specials: Mapping[str, int]) -> int:
    model = document["model"]
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    return specials.get(model.get("unk_token") or "", -1)
