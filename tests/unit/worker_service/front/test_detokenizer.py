"""Text from tokens, piece by piece, with real tokenizers of both families."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from worker_service.front.detokenizer import MAX_HELD_TOKENS, Detokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("Ã", "¤"), ("ð", "Ł")]
    vocab = {token: index for index, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece() -> Tokenizer:
    merges = [("▁", "h"), ("h", "e"), ("▁", "w"), ("l", "l")]
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.,!?\n", *(a + b for a, b in merges)]
    vocab = {token: index for index, token in enumerate([*(f"<0x{b:02X}>" for b in range(256)), *letters])}
    tokenizer = Tokenizer(BPE(vocab, merges, byte_fallback=True, unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return tokenizer


BYTE_LEVEL, SENTENCEPIECE = byte_level(), sentencepiece()
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
TEXTS = st.text(st.sampled_from("hello world, ä€🎉语\n.xyz"), min_size=1, max_size=40)


def decoder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(tokenizer.decode(list(ids)))


def pieces(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decoder(tokenizer), prompt)
    return [detokenizer.feed(token_id) for token_id in answer]


@BOTH
@settings(max_examples=100, deadline=None)
@given(text=TEXTS, cut=st.integers(0, 200))
def test_the_pieces_are_the_text_that_the_whole_adds_to_the_prompt(tokenizer: Tokenizer, text: str, cut: int) -> None:
    ids = tokenizer.encode(text).ids
    prompt, answer = ids[: cut % len(ids)], ids[cut % len(ids) :]
    whole, before = decoder(tokenizer)(ids), decoder(tokenizer)(prompt)
    # SentencePiece's decoder shows a whole run of bytes as broken while its last character is not complete, so what
    # such a prompt ends with is anybody's guess.
    assume(tokenizer is BYTE_LEVEL or not before.endswith(REPLACEMENT))
    found = pieces(tokenizer, prompt, answer)
    known = before.rstrip(REPLACEMENT)
    assert known + "".join(found) == whole


@BOTH
@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_no_piece_has_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    for piece in pieces(tokenizer, [], tokenizer.encode(text).ids):
        assert REPLACEMENT not in piece


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_come_out_as_a_prefix_of_the_whole(ids: list[int]) -> None:
    whole = decoder(BYTE_LEVEL)(ids)
    found = "".join(pieces(BYTE_LEVEL, [], ids))
    assert whole.startswith(found)
    assert whole[len(found) :].strip(REPLACEMENT) == ""


def test_a_space_at_the_beginning_of_the_answer_is_kept() -> None:
    prompt, answer = SENTENCEPIECE.encode("hello").ids, SENTENCEPIECE.encode("world").ids
    assert "".join(pieces(SENTENCEPIECE, prompt, answer)) == " world"


def test_a_character_of_four_tokens_comes_out_with_its_last() -> None:
    ids = list("🎉".encode())  # the byte tokens come first in the vocabulary
    assert pieces(SENTENCEPIECE, [], ids) == ["", "", "", "🎉"]


def test_bytes_that_are_no_text_are_not_held_for_ever() -> None:
    ids = [0xFF] * (3 * MAX_HELD_TOKENS)
    assert len("".join(pieces(SENTENCEPIECE, [], ids))) > MAX_HELD_TOKENS


@settings(max_examples=200, deadline=None)
@given(
    stray=st.lists(st.sampled_from([b"\x80", b"\xff", b"\xe1", b"\xf0\x9f", b"\xc3"]), max_size=40).map(b"".join),
    character=st.sampled_from("ä€🎉"),
)
def test_a_character_after_any_number_of_bytes_that_are_none_is_whole(stray: bytes, character: str) -> None:
    ids = [_byte_id(byte) for byte in stray + character.encode() + b"."]
    assert "".join(pieces(BYTE_LEVEL, [], ids)) == BYTE_LEVEL.decode(ids)
    assert character in BYTE_LEVEL.decode(ids)


def _byte_id(byte: int) -> int:
    """The token of one byte: the alphabet in the order of bytes, printable ones first as themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [code for code in range(256) if code not in printable]
    letter = chr(byte) if byte in printable else chr(256 + others.index(byte))
    token_id = BYTE_LEVEL.token_to_id(letter)
    assert token_id is not None
    return token_id
