"""Stop strings in text with special tokens, whatever of it is shown, against decoding the whole at once."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from hotslot.contract.generation import FinishReason
from tests.unit.worker_service.front.test_detokenizer import byte_level, sentencepiece
from worker_service.engine.messages import SampledToken, SequenceFinished, SequenceId, TokenReady
from worker_service.front.answer import Answer
from worker_service.front.detokenizer import REPLACEMENT, Decoding
from worker_service.front.token_texts import TokenTexts

SEQUENCE = SequenceId(1)
SPECIALS = ("<s>", "</s>", "<tool>", "<s><s>")


def with_specials(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return tokenizer


TOKENIZERS = {"byte-level": with_specials(byte_level()), "sentencepiece": with_specials(sentencepiece())}
BOTH = pytest.mark.parametrize("name", TOKENIZERS)
SPECIAL_IDS = {name: [int(t.token_to_id(text) or 0) for text in SPECIALS] for name, t in TOKENIZERS.items()}
STOPS = st.lists(
    st.one_of(
        st.sampled_from([*SPECIALS, "h<s>", "</s>\nh", "<s>h", "s>", "</", "<tool>ä", " w</s>", "<s><tool>"]),
        st.text("he lw<s>ä", min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def decoding(name: str) -> Decoding:
    tokenizer = TOKENIZERS[name]

    def complete(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    return Decoding(
        lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        complete,
        frozenset(SPECIAL_IDS[name]),
        TokenTexts(None, complete).of,
    )


@st.composite
def token_ids(draw: st.DrawFn, name: str) -> list[int]:
    """Words, torn characters and special tokens in any order."""
    tokenizer = TOKENIZERS[name]
    pieces = st.one_of(
        st.sampled_from(["h", "he", "hell", " w", "\n", "ä", "🎉", "l", "<", "s", ">"]).map(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        ),
        st.sampled_from(SPECIAL_IDS[name]).map(lambda token_id: [token_id]),
        st.sampled_from("ä🎉").flatmap(
            lambda text: st.integers(1, 3).map(lambda n: tokenizer.encode(text, add_special_tokens=False).ids[:n])
        ),
    )
    return [token_id for ids in draw(st.lists(pieces, max_size=12)) for token_id in ids]


def run(
    name: str, prompt: Sequence[int], ids: Sequence[int], stops: Sequence[str], *, skip: bool
) -> tuple[str, str | None, int]:
    """The shown text, the stop string and the number of tokens of an answer."""
    answer = Answer(0, decoding(name), prompt, stops, frozenset(), 0, skip_special_tokens=skip)
    for index, token_id in enumerate(ids):
        if answer.add(TokenReady(SEQUENCE, SampledToken(token_id), float(index), 0.0, 0.0)):
            break
    if answer.ending is None:
        answer.finish(SequenceFinished(SEQUENCE, FinishReason.LENGTH, None, 0.0))
    chunk = answer.take()
    assert answer.ending is not None
    return "" if chunk is None else chunk.text, answer.ending.stop_string, answer.num_tokens


def whole_text(name: str, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """What the answer adds to the prompt's text, special tokens included."""
    complete = decoding(name).complete
    before, whole = complete(prompt), complete([*prompt, *ids])
    assert whole.startswith(before)
    return whole[len(before) :]


def first_completion(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Where the first stop string to be complete begins, and which one it is."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return end - len(longest), longest
    return None


def prompt_of(name: str) -> list[int]:
    return list(TOKENIZERS[name].encode("hell", add_special_tokens=False).ids)


@BOTH
@settings(max_examples=400, deadline=None)
@given(data=st.data(), stops=STOPS)
def test_the_first_stop_string_of_the_whole_text_ends_the_answer(
    name: str, data: st.DataObject, stops: list[str]
) -> None:
    prompt, ids = prompt_of(name), data.draw(token_ids(name))
    text = whole_text(name, prompt, ids).rstrip(REPLACEMENT)
    expected = first_completion(text, stops)
    shown, stop, num_tokens = run(name, prompt, ids, stops, skip=False)
    hidden, hidden_stop, hidden_tokens = run(name, prompt, ids, stops, skip=True)
    if expected is None:
        assert (stop, hidden_stop) == (None, None)
        assert shown == text
        assert hidden == run(name, prompt, ids, (), skip=True)[0]
        return
    begin, longest = expected
    assert (stop, hidden_stop) == (longest, longest)
    assert num_tokens == hidden_tokens
    assert shown == text[:begin]
    # No earlier token had completed it, and this one did.
    assert first_completion(whole_text(name, prompt, ids[: num_tokens - 1]).rstrip(REPLACEMENT), stops) is None
    if REPLACEMENT not in text:
        assert hidden == without_specials(name, prompt, ids, begin)


def without_specials(name: str, prompt: Sequence[int], ids: Sequence[int], num_chars: int) -> str:
    """The first characters of the whole text, without those that special tokens wrote."""
    out, position = "", 0
    for end in range(1, len(ids) + 1):
        so_far = whole_text(name, prompt, ids[:end])
        piece = so_far[position:]
        if REPLACEMENT in piece:
            continue
        if ids[end - 1] not in SPECIAL_IDS[name]:
            out += piece[: max(0, num_chars - position)]
        position = len(so_far)
    return out


def test_a_special_token_as_stop_string_ends_the_answer_where_it_is_not_shown() -> None:
    name = "byte-level"
    tool = SPECIAL_IDS[name][SPECIALS.index("<tool>")]
    ids = [*TOKENIZERS[name].encode("hell").ids, tool, *TOKENIZERS[name].encode("he").ids]
    assert run(name, [], ids, ["<tool>"], skip=True) == ("hell", "<tool>", 2)
    assert run(name, [], ids, ["ll<tool>h"], skip=True) == ("he", "ll<tool>h", 3)
    assert run(name, [], ids, ["l<to"], skip=False) == ("hel", "l<to", 2)
    assert run(name, [], ids, [], skip=False)[0] == "hell<tool>he"
    assert run(name, [], ids, [], skip=True)[0] == "hellhe"
