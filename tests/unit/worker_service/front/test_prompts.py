"""Prompts to tokens."""

import pytest

from hotslot.contract.generation import ChatMessage, ChatPrompt
from hotslot.errors import InvalidRequestError, PromptTooLongError
from tests.support.echo_model import EchoTokenizer
from worker_service.front.prompts import PromptEncoder
from worker_service.front.tokenising import LONG_TEXT_CHARS


async def test_every_kind_of_prompt_is_understood() -> None:
    encoder = PromptEncoder(EchoTokenizer(), 512)
    chat = ChatPrompt((ChatMessage("system", "be brief"), ChatMessage("user", "hi")))
    assert await encoder.encode("hé") == tuple("hé".encode())
    assert await encoder.encode((1, 2)) == (1, 2)
    assert bytes(await encoder.encode(chat)) == b"<system>be brief<user>hi<assistant>"
    continued = ChatPrompt(chat.messages, add_generation_prompt=False)
    assert bytes(await encoder.encode(continued)) == b"<system>be brief<user>hi"


async def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused() -> None:
    encoder = PromptEncoder(EchoTokenizer(), 10)
    assert len(await encoder.encode("a" * 9)) == 9
    with pytest.raises(PromptTooLongError, match="found 10 tokens, at most 9"):
        await encoder.encode("a" * 10)


async def test_long_texts_are_tokenised_on_a_thread_of_their_own() -> None:
    encoder = PromptEncoder(EchoTokenizer(), 10**6)
    assert len(await encoder.encode("a" * LONG_TEXT_CHARS)) == LONG_TEXT_CHARS
    assert encoder._threads._short._threads


async def test_what_the_chat_template_refuses_is_the_callers_fault() -> None:
    encoder = PromptEncoder(EchoTokenizer(), 512)
    with pytest.raises(InvalidRequestError, match="must not begin with the assistant"):
        await encoder.encode(ChatPrompt((ChatMessage("assistant", "hi"),)))


async def test_a_model_without_a_chat_template_says_so() -> None:
    tokenizer = EchoTokenizer()
    tokenizer.chat_template = None
    encoder = PromptEncoder(tokenizer, 512)
    assert not encoder.has_chat_template
    with pytest.raises(InvalidRequestError, match="no chat template"):
        await encoder.encode(ChatPrompt((ChatMessage("user", "hi"),)))
