"""Bodies of requests about tokens alone, as vLLM has them."""

from typing import Annotated, Any

from pydantic import Field

from gateway_service.request_bodies import Body, MessageBody


class TokenizeBody(Body):
    """POST /tokenize."""

    model: str | None = None
    """A base model's name or a reference; may be left out where one base model is served."""
    prompt: str | None = None
    """The text, or else messages."""
    messages: Annotated[list[MessageBody], Field(fail_fast=True, min_length=1)] | None = None
    """The conversation, or else a prompt."""
    add_special_tokens: bool | None = None
    """Add the tokens that stand before every text; true where it is left out. A chat's template writes its own."""
    return_token_strs: bool | None = None
    """Return the tokens' texts too."""
    add_generation_prompt: bool | None = None
    """Render it as what the assistant goes on from, as of a chat."""
    continue_final_message: bool | None = None
    """Leave the last message open."""
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    """Functions that the template shows."""
    chat_template: str | None = Field(default=None, max_length=256)
    """The name of one of the model's templates, never a template itself."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the template."""


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    """A base model's name or a reference; may be left out where one base model is served."""
    tokens: Annotated[list[int], Field(fail_fast=True)]
    """Ids of the tokens."""
