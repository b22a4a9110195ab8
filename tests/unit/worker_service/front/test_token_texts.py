"""Texts and bytes of single tokens, for tokenizers of all kinds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from tests.support import tokenizers_of_all_kinds as kinds
from tests.support.tiny_tokenizers import SPECIAL_TOKENS, byte_tokenizer
from worker_service.front.prompts import PromptEncoder
from worker_service.front.token_texts import TokenTexts

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
LIKE_LLAMA = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def with_decoder(tokenizer: PreTrainedTokenizerFast, decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    tokenizer.backend_tokenizer.decoder = decoder
    return tokenizer


MADE = {
    "byte level": kinds.byte_level(),
    "Llama 2's decoder": with_decoder(kinds.prepending(), decoders.Sequence(LIKE_LLAMA)),
    "without bytes": with_decoder(kinds.prepending(), decoders.Sequence([LIKE_LLAMA[0], LIKE_LLAMA[2], LIKE_LLAMA[3]])),
    "Metaspace": with_decoder(kinds.first_only(), decoders.Metaspace()),
    "unigram": with_decoder(kinds.unigram(), decoders.Metaspace()),
}
TEXTS = st.text(st.sampled_from("helo wHELO\n<|>,.äß🎉"), max_size=30)


def token_texts(tokenizer: object) -> TokenTexts:
    encoder = PromptEncoder(tokenizer, 1_000)  # type: ignore[arg-type]
    return TokenTexts(getattr(tokenizer, "backend_tokenizer", None), encoder.decoding.complete)


@given(text=TEXTS)
def test_bytes_of_consecutive_tokens_are_the_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    texts = token_texts(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(texts.of(token_id).text_bytes for token_id in ids).decode() == text


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("text", ["hello world", "he ll", "hello"])
def test_tokens_keep_the_spaces_that_decoders_drop(kind: str, text: str) -> None:
    tokenizer = MADE[kind]
    texts = token_texts(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = "".join(texts.of(token_id).text for token_id in ids)
    assert joined.strip() == str(tokenizer.decode(ids, skip_special_tokens=False)).strip()
    assert all(texts.of(token_id).text_bytes.decode() == texts.of(token_id).text for token_id in ids)


def test_a_special_token_is_written_out_and_a_part_of_a_character_has_its_byte() -> None:
    tokenizer = byte_tokenizer()
    texts = token_texts(tokenizer)
    special = texts.of(256)
    assert (special.text, special.text_bytes) == (SPECIAL_TOKENS[0], SPECIAL_TOKENS[0].encode())
    parts = [texts.of(token_id) for token_id in tokenizer.encode("ä", add_special_tokens=False)]
    assert [part.text for part in parts] == ["\N{REPLACEMENT CHARACTER}"] * 2
    assert b"".join(part.text_bytes for part in parts) == "ä".encode()
    unknown = texts.of(10**6)
    assert (unknown.text, unknown.text_bytes) == ("", b"")
