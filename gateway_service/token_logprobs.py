"""Log-probabilities in the two forms that OpenAI has for them. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from hotslot.contract.generation import TokenAlternative, TokenLogprob

UNLIKELY = -9999.0
"""Number that OpenAI writes in the place of minus infinity."""

_Scored = TokenLogprob | TokenAlternative


def token_name(token: _Scored) -> str:
    """A token by its text; by its id, as vLLM writes it, where the worker does not tell the text."""
    return token.text or f"token_id:{token.token_id}"


def of_chat(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """A chat's `logprobs`."""
    return {
        "content": [
            {**_entry(token), "top_logprobs": [_entry(alternative) for alternative in token.alternatives]}
            for token in logprobs
        ],
        "refusal": None,
    }


def of_completion(logprobs: Iterable[TokenLogprob], offset: int = 0, first: str | None = None) -> dict[str, Any]:
    """A completion's `logprobs`, of tokens whose texts begin at an offset of the completion's.

    `first` is the text of a prompt's first token, which has no log-probability, in front of them.
    """
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    if first is not None:
        found = {"tokens": [first], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [offset]}
        offset += len(first)
    for token in logprobs:
        found["tokens"].append(_distinct_name(token))
        found["token_logprobs"].append(_finite(token.logprob))
        found["top_logprobs"].append({_distinct_name(it): _finite(it.logprob) for it in token.alternatives})
        found["text_offset"].append(offset)
        offset += len(token.text)
    return found


def text_length(logprobs: Iterable[TokenLogprob]) -> int:
    """Characters of the tokens' texts, by which offsets go on."""
    return sum(len(token.text) for token in logprobs)


def _entry(token: _Scored) -> dict[str, Any]:
    data = list(token.text_bytes) if token.text_bytes else None
    return {"token": token_name(token), "logprob": _finite(token.logprob), "bytes": data}


def _distinct_name(token: _Scored) -> str:
    """Name of a token among others: a part of a character by its bytes, as OpenAI writes it."""
    if "\N{REPLACEMENT CHARACTER}" in token.text and token.text_bytes:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.text_bytes)
    return token_name(token)


def _finite(logprob: float) -> float:
    return max(UNLIKELY, logprob)
