"""Counts a prompt's tokens, and turns tokens into text, without the engine."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hotslot.contract.generation import ChatPrompt
from hotslot.contract.tokens import DecodedTokens, TokenCount
from hotslot.errors import FieldViolation, InvalidRequestError
from worker_service.front.prompts import PromptEncoder
from worker_service.front.validation import RequestLimits, chat_problems

MAX_TOLD_TOKENS = 2**17
"""Most tokens that a count tells one by one."""


@dataclass(frozen=True, slots=True)
class TokenCounting:
    """The use case behind InferenceService.CountTokens and Detokenize."""

    encoder: PromptEncoder
    limits: RequestLimits

    async def count(
        self, prompt: str | ChatPrompt | None, *, add_special_tokens: bool, with_token_ids: bool, with_tokens: bool
    ) -> TokenCount:
        """Number of a prompt's tokens, and the tokens where that is asked for.

        Raises InvalidRequestError, PromptTooLongError and QueueFullError.
        """
        found = await self.encoder.count(_countable(prompt), add_special_tokens=add_special_tokens)
        for name, is_wanted in (("with_token_ids", with_token_ids), ("with_tokens", with_tokens)):
            if is_wanted and len(found) > MAX_TOLD_TOKENS:
                problem = (
                    f"the prompt has {len(found)} tokens, at most {MAX_TOLD_TOKENS} are told; have them counted alone"
                )
                raise InvalidRequestError([FieldViolation(name, problem)])
        return TokenCount(
            len(found),
            self.limits.max_sequence_tokens,
            tuple(found) if with_token_ids else (),
            tuple(map(self.encoder.decoding.token, found)) if with_tokens else (),
        )

    async def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool, with_tokens: bool
    ) -> DecodedTokens:
        """Text of tokens. Raises InvalidRequestError."""
        _check_token_ids(token_ids, self.limits)
        text = await self.encoder.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return DecodedTokens(text, tuple(map(self.encoder.decoding.token, token_ids)) if with_tokens else ())


def _countable(prompt: str | ChatPrompt | None) -> str | ChatPrompt:
    """A prompt that is counted only, and may be empty."""
    if prompt is None:
        raise InvalidRequestError([FieldViolation("prompt", "missing; give text or chat")])
    problems = list(itertools.islice(chat_problems(prompt), 1)) if isinstance(prompt, ChatPrompt) else []
    if problems:
        raise InvalidRequestError(problems)
    return prompt


def _check_token_ids(token_ids: Sequence[int], limits: RequestLimits) -> None:
    if len(token_ids) > limits.max_sequence_tokens:
        problem = f"found {len(token_ids)} tokens, expected at most {limits.max_sequence_tokens}"
        raise InvalidRequestError([FieldViolation("token_ids", problem)])
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < limits.vocab_size:
            problem = f"found token {token_id}, the vocabulary has {limits.vocab_size}"
            raise InvalidRequestError([FieldViolation(f"token_ids[{index}]", problem)])
