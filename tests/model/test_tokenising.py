"""The real tokenizer: the same ids in pieces as in one, and what could never fit is refused unread."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hotslot.errors import PromptTooLongError
from worker_service.demo_model import ensure_model
from worker_service.front import tokenising
from worker_service.front.prompt_threads import PromptThreads
from worker_service.front.tokenising import Tokeniser

pytestmark = pytest.mark.model

PROSE = (Path(__file__).resolve().parents[2] / "ARCHITECTURE.md").read_text()
THREADS = PromptThreads()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ensure_model())


@pytest.fixture(scope="module")
def tokeniser(tokenizer: Any) -> Tokeniser:
    """Made once: it looks at every token that the tokenizer has."""
    return Tokeniser(tokenizer, 2_047, THREADS)


@given(
    parts=st.lists(
        st.one_of(
            st.integers(0, len(PROSE) - 600).flatmap(
                lambda begin: st.integers(0, 600).map(lambda size: PROSE[begin : begin + size])
            ),
            st.sampled_from(
                ["<|im_start|>", "<|im_end|>", "   ", "\n\n", "don't", "é", "e\u0301", "😀", "日本語", "0123"]
            ),
            st.text(max_size=8),
        ),
        max_size=8,
    )
)
@settings(max_examples=200, deadline=None)
def test_pieces_have_the_ids_of_the_whole(tokenizer: Any, tokeniser: Tokeniser, parts: list[str]) -> None:
    text = "".join(parts)
    expected = tokenizer.encode(text, add_special_tokens=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenising, "LONG_TEXT_CHARS", 1)
        patch.setattr(tokenising, "PIECE_CHARS", 20)
        bounded = tokeniser.bounded(len(expected))
        assert bounded._cuts is not None
        assert bounded._bound is not None
        assert asyncio.run(bounded.encode(text, add_special_tokens=True)) == expected


@pytest.mark.parametrize("unit", ["x", "😀", "hello world ", " ", "\n", "日本", "0", "="])
def test_megabytes_are_refused_unread(tokeniser: Tokeniser, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokeniser, "_encode", None)
    with pytest.raises(PromptTooLongError, match="at least"):
        asyncio.run(tokeniser.encode(unit * (3_900_000 // len(unit.encode())), add_special_tokens=True))
