"""Tokens of texts and chats, and back, as vLLM's `/tokenize` and `/detokenize` have them."""

from typing import Any

from gateway_service.deployment import Deployment
from gateway_service.errors import ModelNotFoundError, wrong_param
from gateway_service.models import NEITHER, card_of
from gateway_service.token_bodies import DetokenizeBody, TokenizeBody
from gateway_service.translation import counted_from
from hotslot.errors import InvalidReferenceError
from hotslot.ids import TenantId
from hotslot.references import parse_reference

AnswerBody = dict[str, Any]


async def tokenize(deployment: Deployment, tenant: TenantId, body: TokenizeBody) -> AnswerBody:
    """Tokens of a prompt; raises ApiError and what counting raises."""
    prompt = counted_from(body)
    base = await _base_of(deployment, tenant, body.model)
    async with deployment.client(tenant) as client:
        found = await client.count_tokens(
            prompt,
            base_model=base,
            add_special_tokens=body.add_special_tokens is not False,
            with_token_ids=True,
            with_tokens=bool(body.return_token_strs),
        )
    return {
        "count": found.num_tokens,
        "max_model_len": found.max_sequence_tokens,
        "tokens": list(found.token_ids),
        "token_strs": [token.text for token in found.tokens] if body.return_token_strs else None,
    }


async def detokenize(deployment: Deployment, tenant: TenantId, body: DetokenizeBody) -> AnswerBody:
    """Text of tokens; raises ApiError and what decoding raises."""
    base = await _base_of(deployment, tenant, body.model)
    async with deployment.client(tenant) as client:
        return {"prompt": (await client.detokenize(body.tokens, base_model=base)).text}


async def _base_of(deployment: Deployment, tenant: TenantId, model: str | None) -> str:
    """The base model, by digest, whose tokens are meant: every adapter of a base has the base's."""
    if model is None:
        bases = await deployment.bases()
        if len(bases) > 1:
            names = ", ".join(sorted(base.name for base in bases))
            raise wrong_param("model", f"must be given: {names} are served, each with tokens of its own")
        return bases[0].digest
    named = await deployment.base_named(model)
    if named is not None:
        return named.digest
    if deployment.has_store:
        parent = (await card_of(deployment, tenant, model))["parent"]
        of_adapter = await deployment.base_named(parent)
        assert of_adapter is not None, "a card's parent is a base model that is served"
        return of_adapter.digest
    try:
        parse_reference(model)
    except InvalidReferenceError as exc:
        raise ModelNotFoundError(model, NEITHER) from exc
    # One worker without a store has one base model, whichever adapters it will load.
    return (await deployment.bases())[0].digest
