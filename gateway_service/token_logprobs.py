"""Log-probabilities in the two forms that OpenAI has for them. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from hotslot.contract.generation import TokenLogprob

UNLIKELY = -9999.0
"""Number that OpenAI writes in the place of minus infinity."""


def token_name(token_id: int) -> str:
    """A token by its id, as vLLM writes it with `return_tokens_as_token_ids`."""
    return f"token_id:{token_id}"


def of_chat(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """A chat's `logprobs`."""
    return {
        "content": [
            {
                **_entry(token.token_id, token.logprob),
                "top_logprobs": [_entry(token_id, logprob) for token_id, logprob in token.alternatives],
            }
            for token in logprobs
        ],
        "refusal": None,
    }


def of_completion(logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    """A completion's `logprobs`; where tokens begin in the text is not known."""
    found = list(logprobs)
    return {
        "tokens": [token_name(token.token_id) for token in found],
        "token_logprobs": [_finite(token.logprob) for token in found],
        "top_logprobs": [
            {token_name(token_id): _finite(logprob) for token_id, logprob in token.alternatives} for token in found
        ],
        "text_offset": [],
    }


def _entry(token_id: int, logprob: float) -> dict[str, Any]:
    return {"token": token_name(token_id), "logprob": _finite(logprob), "bytes": None}


def _finite(logprob: float) -> float:
    return max(UNLIKELY, logprob)
