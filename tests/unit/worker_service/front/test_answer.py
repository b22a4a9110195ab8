"""One choice of an answer: tokens in, text out."""

from hotslot.contract.generation import FinishReason
from worker_service.engine.messages import SampledToken, SequenceFinished, SequenceId, TokenReady
from worker_service.front.answer import Answer
from worker_service.front.detokenizer import Decoding
from worker_service.front.token_texts import TokenTexts

SEQUENCE = SequenceId(1)
EOS = 256


def decode(ids: object) -> str:
    return bytes(i for i in ids if i < EOS).decode(errors="replace")  # type: ignore[attr-defined]


DECODING = Decoding(decode, decode, frozenset({EOS}), TokenTexts(None, decode).of)


def answer(*stop_strings: str, min_tokens: int = 0, stop_ids: frozenset[int] = frozenset({EOS})) -> Answer:
    return Answer(0, DECODING, [], stop_strings, stop_ids, min_tokens)


def feed(choice: Answer, data: bytes | list[int]) -> bool:
    for index, token_id in enumerate(data):
        if choice.add(TokenReady(SEQUENCE, SampledToken(token_id), float(index), 0.0, 0.0)):
            return True
    return False


def finish(choice: Answer, reason: FinishReason, stop_token_id: int | None = None) -> None:
    choice.finish(SequenceFinished(SEQUENCE, reason, stop_token_id, 9.0))


def test_the_stop_token_counts_and_has_no_text() -> None:
    choice = answer()
    feed(choice, [*b"hi", EOS])
    finish(choice, FinishReason.STOP, EOS)
    chunk = choice.take()
    assert chunk is not None
    assert chunk.text == "hi"
    assert list(chunk.token_ids) == [*b"hi", EOS]
    assert choice.num_tokens == 3
    assert choice.ending is not None
    assert choice.ending.stop_token_id == EOS


def test_an_ordinary_token_as_stop_token_has_no_text_either() -> None:
    choice = answer(stop_ids=frozenset(b"."))
    feed(choice, b"hi.")
    finish(choice, FinishReason.STOP, ord("."))
    chunk = choice.take()
    assert chunk is not None
    assert chunk.text == "hi"


def test_a_stop_token_that_did_not_stop_has_its_text() -> None:
    choice = answer(stop_ids=frozenset(b"."))
    feed(choice, b"a.b")
    chunk = choice.take()
    assert chunk is not None
    assert chunk.text == "a.b"


def test_a_stop_string_ends_it_and_what_comes_late_is_ignored() -> None:
    choice = answer("END")
    assert feed(choice, b"so ENDless")
    chunk = choice.take()
    assert chunk is not None
    assert chunk.text == "so "
    assert choice.num_tokens == len("so END")
    assert choice.ending is not None
    assert (choice.ending.reason, choice.ending.stop_string) == (FinishReason.STOP, "END")


def test_the_beginning_of_a_stop_string_comes_out_when_the_answer_ends_otherwise() -> None:
    choice = answer("END")
    feed(choice, b"so EN")
    first = choice.take()
    finish(choice, FinishReason.LENGTH)
    last = choice.take()
    assert first is not None
    assert last is not None
    assert (first.text, last.text) == ("so ", "EN")


def test_stop_strings_do_not_count_before_min_tokens() -> None:
    choice = answer("a", min_tokens=3)
    assert feed(choice, b"aaba")
    chunk = choice.take()
    assert chunk is not None
    assert chunk.text == "aab"


def test_half_a_character_at_the_end_is_left_out() -> None:
    choice = answer()
    feed(choice, "ok 🎉".encode()[:-1])
    finish(choice, FinishReason.LENGTH)
    chunk = choice.take()
    assert chunk is not None
    assert chunk.text == "ok "
    assert choice.take() is None
