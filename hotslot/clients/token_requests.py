"""Requests about tokens alone, checked before a worker is asked."""

from collections.abc import Sequence

from hotslot.clients.plain_forms import Prompt, as_prompt
from hotslot.codec import build, mismatch
from hotslot.contract.generation import ChatPrompt
from hotslot.errors import InvalidRequestError
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb


def count_request(
    prompt: Prompt | pb.CountTokensRequest, *, add_special_tokens: bool, with_token_ids: bool, with_tokens: bool
) -> pb.CountTokensRequest:
    """Request to count the tokens of a text or of a chat; one that is made already stays as it is.

    Raises InvalidRequestError for other prompts.
    """
    if isinstance(prompt, pb.CountTokensRequest):
        return prompt
    found = as_prompt(prompt)
    if not isinstance(found, str | ChatPrompt):
        raise InvalidRequestError([mismatch("prompt", prompt, "a text, ChatPrompt or messages")])
    return build(
        pb.CountTokensRequest,
        {"text" if isinstance(found, str) else "chat": found},
        add_special_tokens=add_special_tokens,
        with_token_ids=with_token_ids,
        with_tokens=with_tokens,
    )


def detokenize_request(
    token_ids: Sequence[int] | pb.DetokenizeRequest, *, skip_special_tokens: bool, with_tokens: bool
) -> pb.DetokenizeRequest:
    """Request for the text of tokens; one that is made already stays. Raises InvalidRequestError for what are none."""
    if isinstance(token_ids, pb.DetokenizeRequest):
        return token_ids
    return build(
        pb.DetokenizeRequest, token_ids=token_ids, skip_special_tokens=skip_special_tokens, with_tokens=with_tokens
    )
