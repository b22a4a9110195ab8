"""Text and end of an answer, found by decoding all of its tokens at once and looking for the first stop string."""

from collections.abc import Sequence

from hotslot.contract.generation import FinishReason, GenerationRequest
from tools.fuzz.request.models import BACKEND, EOS_IDS, MAX_SEQUENCE_TOKENS, SPECIAL_IDS, Model
from tools.fuzz.target import require
from worker_service.engine.messages import SampledToken, SequenceFinished, SequenceId, TokenReady
from worker_service.front.answer import Answer
from worker_service.front.detokenizer import MAX_HELD_TOKENS, REPLACEMENT

SEQUENCE = SequenceId(1)
NAIVE_CONTEXT_TOKENS = 64


def check_answer(model: Model, request: GenerationRequest, prompt: Sequence[int], drawn: Sequence[int]) -> None:
    """Answer a request with these tokens, as the engine would, and raise OracleError where it is not their text."""
    room = MAX_SEQUENCE_TOKENS - len(prompt)
    max_tokens = min(request.stop.most_tokens or room, room)
    min_tokens = min(request.stop.min_tokens, max_tokens)
    stop_ids = frozenset((*(() if request.stop.ignore_eos else EOS_IDS), *request.stop.token_ids))
    answer = Answer(
        0, model.encoder.decoding, prompt, request.stop.strings, stop_ids, min_tokens,
        skip_special_tokens=request.skip_special_tokens,
    )  # fmt: skip
    told: list[int] = []
    shown, emitted = "", list[int]()
    end = SequenceFinished(SEQUENCE, FinishReason.LENGTH, None, 0.0)
    for token_id in drawn:
        if token_id in stop_ids and len(emitted) + 1 < min_tokens:
            continue  # The engine bans it so early.
        emitted.append(token_id)
        if answer.add(TokenReady(SEQUENCE, SampledToken(token_id), 0.0, 0.0, 0.0)):
            break
        chunk = answer.take()
        shown += chunk.text if chunk is not None else ""
        told += chunk.token_ids if chunk is not None else []
        if token_id in stop_ids and len(emitted) >= min_tokens:
            end = SequenceFinished(SEQUENCE, FinishReason.STOP, token_id, 0.0)
            break
        if len(emitted) >= max_tokens:
            break
    if answer.ending is None:
        answer.finish(end)
    ending, chunk = answer.ending, answer.take()
    shown += chunk.text if chunk is not None else ""
    told += chunk.token_ids if chunk is not None else []
    require(ending is not None, "an answer without an end")
    assert ending is not None
    require(told == emitted[: len(told)] and answer.num_tokens == len(told), "not the tokens that were answered")
    if ending.stop_string is None:
        require(told == emitted and ending.reason is end.reason, "another end than the engine's")
        require(ending.stop_token_id == end.stop_token_id, "another stop token than the engine's")
    of_text = emitted[:-1] if end.reason is FinishReason.STOP and ending.stop_string is None else told
    _check_text(request, prompt[-NAIVE_CONTEXT_TOKENS:], of_text, shown, ending.stop_string, min_tokens)


def _check_text(
    request: GenerationRequest,
    prompt: Sequence[int],
    token_ids: Sequence[int],
    shown: str,
    stop: str | None,
    min_tokens: int,
) -> None:
    skips, stops = request.skip_special_tokens, request.stop.strings
    whole = _added(prompt, token_ids, skips=False)
    if skips and REPLACEMENT in whole and len(token_ids) > MAX_HELD_TOKENS:
        return  # Special tokens may stand within a character, more of them than are waited for.
    if stop is None:
        _require_text(shown, _added(prompt, token_ids, skips=skips))
    else:
        require(stop in stops, f"stopped by {stop!r}, which is none of {stops}")
    if any(REPLACEMENT in text for text in stops):
        return  # Bytes that are no character yet look like one.
    start = len(_added(prompt, token_ids[: min_tokens - 1], skips=False).rstrip(REPLACEMENT)) if min_tokens > 1 else 0
    found = first_completion(whole.rstrip(REPLACEMENT)[start:], stops)
    require((found[1] if found else None) == stop, f"stopped by {stop!r}, expected {found}, in {whole!r} from {start}")
    if found is None:
        return
    before = _added(prompt, token_ids[:-1], skips=False).rstrip(REPLACEMENT)[start:]
    require(first_completion(before, stops) is None, f"{stop!r} was there a token earlier")
    kept = whole[: start + found[0]]
    if not skips:
        _require_text(shown, kept)
    elif REPLACEMENT not in whole:
        _require_text(shown, "".join(kept[begin:end] for begin, end in _ordinary(prompt, token_ids)))


def first_completion(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Beginning of the first stop string to be complete, and that string."""
    ends = [(text.find(stop) + len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return None
    end = min(end for end, _ in ends)
    longest = max((stop for found, stop in ends if found == end), key=len)
    return end - len(longest), longest


def _ordinary(prompt: Sequence[int], token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of the answer's text that are not of special tokens."""
    ranges, position = [], 0
    for index, token_id in enumerate(token_ids):
        end = len(_added(prompt, token_ids[: index + 1], skips=False).rstrip(REPLACEMENT))
        if token_id not in SPECIAL_IDS:
            ranges.append((position, end))
        position = end
    return ranges


def _added(prompt: Sequence[int], token_ids: Sequence[int], *, skips: bool) -> str:
    """Text that the tokens add to the prompt's."""
    before = str(BACKEND.decode(list(prompt), skip_special_tokens=skips)).rstrip(REPLACEMENT)
    whole = str(BACKEND.decode([*prompt, *token_ids], skip_special_tokens=skips))
    require(whole.startswith(before), "the oracle's own tokenizer changes what was before")
    return whole[len(before) :]


def _require_text(shown: str, expected: str) -> None:
    """The same text, but for bytes at its ends that are no character: those at the end may still become one."""
    same = shown == expected or shown.strip(REPLACEMENT) == expected.strip(REPLACEMENT)
    require(same, f"shown {shown!r}, expected {expected!r}")
