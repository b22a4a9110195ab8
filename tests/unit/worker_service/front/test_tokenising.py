"""Whatever the tokenizer: a prompt that fits is never refused, and its ids are those of the tokenizer for the whole."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot.errors import PromptTooLongError, QueueFullError
from tests.support.many_tokenizers import BOUND, CORPUS, CUT, MAKES, Encoding
from worker_service.front import tokenising
from worker_service.front.prompt_threads import PromptThreads
from worker_service.front.text_cuts import TextCuts
from worker_service.front.token_bound import TokenBound
from worker_service.front.tokenising import Tokeniser

ADDED = ["<|im_start|>", "<|end|>", "<tool_call>", "tool call", "<mask>", "<gap>", "brown", "<s>", "<unk>", "<0x0A>"]
# fmt: off
ODD = [
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2003", "▁", "Ġ",
    "é", "e\u0301\u0323", "\u0301", "ﬁ", "İ", "Å", "각", "\u1100\u1161", "\ufdfa", "😀", "\x00", "\ud7ff",
]
# fmt: on
WORDS = sorted({word for line in CORPUS for word in line.split()})
PARTS = st.one_of(
    st.sampled_from([*ADDED, *ODD]),
    st.sampled_from(WORDS),
    st.sampled_from(WORDS).map(lambda word: " " + word),
    st.sampled_from([" a b", "x y z ", "'s 'T a", " 12 a3 b", ". A. B", "a b" * 4, "x" * 20, " " * 15, "=" * 24]),
    st.text(max_size=4),
)
TEXTS = st.lists(PARTS, max_size=25).map("".join)


@cache
def made(make: str) -> Encoding:
    return Encoding(MAKES[make]())


@cache
def tokeniser_of(make: str) -> Tokeniser:
    return Tokeniser(made(make), 0, THREADS)


THREADS = PromptThreads()


@pytest.fixture(autouse=True)
def small_sizes() -> Iterator[None]:
    """Texts of tests are short: everything is long to them, and pieces are smaller than words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenising, "LONG_TEXT_CHARS", 1)
        patch.setattr(tokenising, "PIECE_CHARS", 3)
        yield


async def found(make: str, text: str, max_tokens: int, *, special: bool) -> Sequence[int]:
    tokeniser = tokeniser_of(make)
    tokeniser._max_tokens = max_tokens
    return await tokeniser.encode(text, add_special_tokens=special)


@pytest.mark.parametrize("make", MAKES)
def test_what_is_known_of_a_tokenizer_is_what_it_was_made_for(make: str) -> None:
    backend = made(make).backend_tokenizer
    for kind, known in ((TokenBound, BOUND), (TextCuts, CUT)):
        if make in known:
            kind(backend)
        else:
            with pytest.raises(ValueError, match=r"known|make one token"):
                kind(backend)


@pytest.mark.parametrize("make", MAKES)
@given(text=TEXTS, special=st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_prompt_that_fits_has_the_ids_of_the_whole_and_one_more_token_is_refused(
    make: str, text: str, special: bool
) -> None:
    expected = made(make).encode(text, add_special_tokens=special)
    assert asyncio.run(found(make, text, len(expected), special=special)) == expected
    if expected:
        with pytest.raises(PromptTooLongError, match=r"found (at least )?\d+ tokens"):
            asyncio.run(found(make, text, len(expected) - 1, special=special))


@pytest.mark.parametrize("make", sorted(BOUND))
@given(text=TEXTS, size=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_bound_is_never_above_the_tokens(make: str, text: str, size: int) -> None:
    bound = TokenBound(made(make).backend_tokenizer) if make not in BOUNDS else BOUNDS[make]
    BOUNDS[make] = bound
    fewest = sum(bound.of(text[begin : begin + size]) for begin in range(0, len(text), size))
    for form in (text, normalize("NFC", text)):
        whole = bound.of(form)
        num_tokens = len(made(make).encode(form, add_special_tokens=False))
        assert whole <= num_tokens + 1e-6
    assert fewest <= len(made(make).encode(text, add_special_tokens=False)) + 1e-6


BOUNDS: dict[str, TokenBound] = {}


@pytest.mark.parametrize("make", sorted(CUT))
def test_an_ordinary_text_is_cut_and_tells_early_that_it_is_too_long(make: str) -> None:
    asked: list[str] = []

    class Counting(Encoding):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            asked.append(text)
            return super().encode(text, add_special_tokens=add_special_tokens)

    text = "the quick brown fox jumps " * 100
    tokeniser = Tokeniser(Counting(made(make).backend_tokenizer), 40, THREADS)
    tokeniser._bound = None
    asked.clear()
    with pytest.raises(PromptTooLongError, match="at least"):
        asyncio.run(tokeniser.encode(text, add_special_tokens=True))
    assert sum(map(len, asked)) < len(text) / 4


@pytest.mark.parametrize("make", sorted(BOUND))
def test_a_text_that_could_never_fit_is_not_tokenised_at_all(make: str) -> None:
    class Refusing(Encoding):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            assert len(text) < 100
            return super().encode(text, add_special_tokens=add_special_tokens)

    tokeniser = Tokeniser(Refusing(made(make).backend_tokenizer), 30, THREADS)
    for text in ("x" * 20_000, "hello world " * 2_000):
        with pytest.raises(PromptTooLongError, match=r"at least 3[1-9] tokens, at most 30"):
            asyncio.run(tokeniser.encode(text, add_special_tokens=True))


class Slow:
    """Tokenises long texts until it is let go on."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.texts: list[int] = []

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.texts.append(len(text))
        if len(text) >= 100:
            self.gate.wait(60)
        return [1]


async def test_a_short_prompt_waits_for_no_long_one_and_what_is_cancelled_is_not_begun() -> None:
    slow, threads = Slow(), PromptThreads()
    tokeniser = Tokeniser(slow, 10, threads)
    slow.texts.clear()
    long = [asyncio.create_task(tokeniser.encode("x" * (100 + n), add_special_tokens=False)) for n in range(8)]
    await asyncio.sleep(0)
    begun_s = time.monotonic()
    assert await tokeniser.encode("hi", add_special_tokens=False) == [1]
    assert time.monotonic() - begun_s < 45
    for task in long[1:]:
        task.cancel()
    await asyncio.wait(long[1:])
    assert all(task.cancelled() for task in long[1:])
    slow.gate.set()
    assert await long[0] == [1]
    assert await tokeniser.encode("x" * 200, add_special_tokens=False) == [1]
    assert slow.texts == [2, 100, 200] or slow.texts == [100, 2, 200]
    assert threads._waiting_chars == 0
    threads.close()


async def test_more_text_than_may_wait_is_refused_and_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "MAX_WAITING_CHARS", 250)
    slow, threads = Slow(), PromptThreads()
    tokeniser = Tokeniser(slow, 10, threads)
    first = [asyncio.create_task(tokeniser.encode("x" * 120, add_special_tokens=False)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="240 characters of other prompts") as caught:
        await tokeniser.encode("x" * 20, add_special_tokens=False)
    assert caught.value.retry_after_s
    slow.gate.set()
    await asyncio.gather(*first)
    assert await tokeniser.encode("x" * 400, add_special_tokens=False) == [1], "alone, any text may wait"
    threads.close()
